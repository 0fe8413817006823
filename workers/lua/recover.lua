-- Puts the jobs of a dead worker back to the front of the queue, at the cost of one retry for each, and noted in its
-- history. Before its last try a job waits to be tried alone. Jobs without retries left go to the claims of the
-- finder, who fails their queries.
-- KEYS: queue claims_of_dead workers worker_key claims_of_finder alone
-- ARGV: name_of_dead max_bytes name_of_finder
-- Reply: {number given back, spent jobs as job.lua returns them}; {0, {}} where that worker lives after all.

-- include job
if redis.call('EXISTS', KEYS[4]) == 1 then return {0, {}} end
-- include settle
local count, spent, now = 0, {}, redis.call('TIME')[1]
local ids = redis.call('LRANGE', KEYS[2], 0, -1)
for i = #ids, 1, -1 do
  local id = ids[i]
  local key = 'rq:job:' .. id
  local state = job(id, 0)[2]
  redis.call('LREM', KEYS[2], -1, id)
  if state == 'large' and string.find(id, '%-copy$') then
    redis.call('DEL', key)  -- a copy: who has the job itself answers it
  elseif state == 'large' then
    local left = redis.pcall('HINCRBY', key, 'retries_left', -1)
    local deaths = string.sub((redis.call('HGET', key, 'deaths') or '') .. ARGV[1] .. '@' .. now .. ' ', 1, 2000)
    redis.call('HSET', key, 'status', 'queued', 'deaths', deaths)
    if type(left) == 'number' and left > 0 then
      redis.call('LPUSH', KEYS[1], id)
      count = count + 1
    elseif left == 0 then
      redis.call('RPUSH', KEYS[6], id)
      count = count + 1
    else
      redis.call('HSET', key, 'status', 'started', 'worker_name', ARGV[3])
      redis.call('RPUSH', KEYS[5], id)
      spent[#spent + 1] = job(id, ARGV[2])
    end
  end
end
redis.call('SREM', KEYS[3], ARGV[1])
return {count, spent}
