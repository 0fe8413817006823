-- For other scripts: the batches `first`..`last` of a list and how many bytes they have; or those bytes and 0 where
-- they are more than `most`: who reads them wants to know before whether they fit into its memory.

local function batches(key, first, last, most)
  local found, bytes = redis.call('LRANGE', key, first, last), 0
  for _, batch in ipairs(found) do bytes = bytes + #batch end
  if bytes > most then return bytes, 0 end
  return found, bytes
end
