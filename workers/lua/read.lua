-- Reads meta, batches and what is still pending of episodes.
-- KEYS: for each episode: meta frames queries
-- ARGV: most_bytes, and for each episode: first_batch last_batch number_of_query_ids id ...
-- Reply: for each {meta, {kind or "" of each id}, {batch ...} or their bytes}; no batches where nothing of it is pending.
--        Keys of a wrong type, which no client of ours makes, spoil their episode alone: the reply is {} then.

-- include batches
local left = tonumber(ARGV[1])

local function read(i, a)
  local meta = redis.call('HGETALL', KEYS[3 * i - 2])
  local kinds, open = {}, ARGV[a + 2] == '0' and #meta > 0
  for j = 1, tonumber(ARGV[a + 2]) do
    local kind = redis.call('HGET', KEYS[3 * i], ARGV[a + 2 + j])
    if kind == 'done' or kind == 'value' then open = true else kind = '' end
    kinds[j] = kind
  end
  local found, bytes = {}, 0
  if open then found, bytes = batches(KEYS[3 * i - 1], ARGV[a], ARGV[a + 1], left) end
  left = left - bytes
  return {meta, kinds, found}
end

local replies, a = {}, 2
for i = 1, #KEYS / 3 do
  local ok, reply = pcall(read, i, a)
  replies[i] = ok and reply or {}
  a = a + 3 + tonumber(ARGV[a + 2])
end
return replies
