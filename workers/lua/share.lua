-- Puts a copy of a job on the queue, for another worker to help with; it goes with whoever takes it.
-- KEYS: queue job copy
-- ARGV: id of the copy, worker that has the job
-- Reply: 1, or 0 where a worker died with the job, the job is gone or such a copy itself.

if redis.call('HEXISTS', KEYS[2], 'helps') == 1 or redis.call('HEXISTS', KEYS[2], 'deaths') == 1 then return 0 end
if redis.call('COPY', KEYS[2], KEYS[3]) == 0 then return 0 end
redis.call('HDEL', KEYS[3], 'prefers', 'passed', 'left', 'deaths', 'trying')
redis.call('HSET', KEYS[3], 'status', 'queued', 'helps', ARGV[2])
redis.call('RPUSH', KEYS[1], ARGV[1])
return 1
