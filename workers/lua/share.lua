-- Puts copies of a job on the queue, for workers that have nothing else to do: they help with it.
-- KEYS: queue jobs...
-- ARGV: what ends a copy's id, copies wanted, ids of the jobs...
-- Reply: {copy, job} of each copy made, all of one job; none while jobs wait on the queue, which copies would go before.
-- A copy that is there still, waiting or at work, is not made again; one whose worker died or left is. Jobs with which
-- a worker died are not copied.

local made = {}
if redis.call('LLEN', KEYS[1]) > 0 then return made end
for j = 2, #KEYS do
  for i = 1, redis.call('HEXISTS', KEYS[j], 'deaths') == 1 and 0 or tonumber(ARGV[2]) do
    local tail = string.format('-%02d%s', i, ARGV[1])
    if redis.call('COPY', KEYS[j], KEYS[j] .. tail) == 1 then
      redis.call('HDEL', KEYS[j] .. tail, 'prefers', 'passed', 'left')
      redis.call('HSET', KEYS[j] .. tail, 'status', 'queued')
      redis.call('RPUSH', KEYS[1], ARGV[j + 1] .. tail)
      made[#made + 1] = {ARGV[j + 1] .. tail, ARGV[j + 1]}
    end
  end
  if #made > 0 then break end
end
return made
