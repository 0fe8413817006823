-- Puts copies of a job on the queue, for other workers to help with it; they go with whoever takes them.
-- KEYS: queue job copies...
-- ARGV: worker that has the job, ids of the copies...
-- Reply: how many; 0 where the job is not to be copied: a worker died with it, it is gone or such a copy itself; -1
-- while jobs wait on the queue, which copies would go before.

if redis.call('LLEN', KEYS[1]) > 0 then return -1 end
if redis.call('HEXISTS', KEYS[2], 'helps') == 1 or redis.call('HEXISTS', KEYS[2], 'deaths') == 1 then return 0 end
local made = 0
for i = 3, #KEYS do
  if redis.call('COPY', KEYS[2], KEYS[i]) == 1 then
    redis.call('HDEL', KEYS[i], 'prefers', 'passed', 'left', 'deaths', 'trying')
    redis.call('HSET', KEYS[i], 'status', 'queued', 'helps', ARGV[1])
    redis.call('EXPIRE', KEYS[i], 86400)
    redis.call('RPUSH', KEYS[1], ARGV[i - 1])
    made = made + 1
  end
end
return made
