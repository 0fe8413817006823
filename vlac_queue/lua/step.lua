-- Pushes batches and registers queries, for each episode the one, the other or both; and enqueues the jobs that carry
-- the queries, if any was registered. Sending it again, after a connection broke, changes nothing.
-- KEYS: open sizes rq_queue rq_queues, the key of each job, and for each episode: meta frames queries reference users
-- ARGV: ttl max_bytes number_of_jobs pushes (0 or 1),
--       for each job: id number_of_fields field value ...,
--       for each episode: id batch_index payload (or "") query_id (or "") kind
-- Reply: for each episode {status}, {status, number} or {'error', what Redis said}: keys of a wrong type spoil their
--        episode alone. status: 'ok', 'gone', 'order' with the number of batches there, 'full' with the bytes there.
-- Where nothing is pushed, it goes on when Redis is full: a script that has written may (see answer.lua of the workers).

-- include purge
if ARGV[4] == '0' then redis.call('HDEL', KEYS[2], '') end
-- Keys of a wrong type are found before anything is written.
redis.call('HGET', KEYS[2], '')
redis.call('LLEN', KEYS[3])
purge(KEYS[1], KEYS[2])
local ttl, limit, jobs, expires = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), now() + ARGV[1]

local function push(frames, id, index, payload)
  local count = redis.call('LLEN', frames)
  if count == index + 1 and redis.call('LINDEX', frames, index) == payload then return end
  if count ~= index then return {'order', count} end
  local total = tonumber(redis.call('HGET', KEYS[2], ':total') or 0)
  if total + #payload > limit then return {'full', total} end
  redis.call('RPUSH', frames, payload)
  redis.call('HINCRBY', KEYS[2], id, #payload)
  redis.call('HINCRBY', KEYS[2], ':total', #payload)
end

local a, first_job = 5, 5
for j = 1, jobs do a = a + 2 + ARGV[a + 1] end
local replies, asked = {}, false

local function step(k, id, index, payload, query, kind)
  if redis.call('EXISTS', KEYS[k]) == 0 then return {'gone'} end
  if query ~= '' then redis.call('HGET', KEYS[k + 2], query) end
  local failed = payload ~= '' and push(KEYS[k + 1], id, tonumber(index), payload)
  if failed then return failed end
  if query ~= '' then
    redis.call('HSETNX', KEYS[k + 2], query, kind)
    asked = true
  end
  for key = k, k + 4 do redis.call('EXPIRE', KEYS[key], ttl) end
  redis.call('ZADD', KEYS[1], expires, id)
  return {'ok'}
end

for i = 1, (#KEYS - 4 - jobs) / 5 do
  local ok, reply = pcall(step, 5 * i + jobs, unpack(ARGV, a, a + 4))
  replies[i] = ok and reply or {'error', type(reply) == 'table' and reply.err or reply}
  a = a + 5
end
if asked then
  a = first_job
  redis.pcall('SADD', KEYS[4], KEYS[3]) -- for `rq info`
  for j = 1, jobs do
    local count = tonumber(ARGV[a + 1])
    if redis.call('EXISTS', KEYS[4 + j]) == 0 then
      redis.call('HSET', KEYS[4 + j], unpack(ARGV, a + 2, a + 1 + count))
      redis.call('EXPIRE', KEYS[4 + j], ttl)
      redis.call('RPUSH', KEYS[3], ARGV[a])
    end
    a = a + 2 + count
  end
end
return replies
