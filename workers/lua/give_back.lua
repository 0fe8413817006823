-- Puts jobs back to the front of the queue, in their order; those on their last try wait to be tried alone.
-- KEYS: queue claims alone
-- ARGV: ids, or none for all
-- Reply: how many.

-- include job
-- include settle
local ids, count = ARGV, 0
if #ids == 0 then ids = redis.call('LRANGE', KEYS[2], 0, -1) end
for i = #ids, 1, -1 do
  local id = ids[i]
  local key = 'rq:job:' .. id
  -- Any data is "large" beside 0 bytes: so it is there, and not read. Where this raises, the claim stays.
  local state = job(id, 0)[2]
  if redis.call('LREM', KEYS[2], 1, id) == 1 and state == 'large' then
    redis.call('HSET', key, 'status', 'queued')
    local left, deaths = unpack(redis.call('HMGET', key, 'retries_left', 'deaths'))
    left = tonumber(left)
    if deaths and left and left <= 0 then
      if left == 0 then redis.call('HDEL', key, 'trying') end
      redis.call('RPUSH', KEYS[3], id)
    else
      redis.call('LPUSH', KEYS[1], id)
    end
    count = count + 1
  end
end
return count
