-- Takes up to n jobs and reads them; what is unfit is dropped.
--
-- With a job comes what its worker would ask for next: the episodes of its done queries and the one batch that each is
-- about (field "ahead" of the job, a JSON list of episode, query id and batch index), so that a worker that knows the
-- frame before needs no further round trip.
--
-- Where jobs wait, a worker takes first those whose episodes it knows ("prefers"; of others it has to read and decode
-- all that it did not see), then those that nobody knows, then the first. The first is passed over a few times only.
-- A copy of a job (share.lua) is for a worker that has nothing else to do, nor that job or another copy of it.
--
-- First of all the worker's name goes to those whose death is noticed: it may have been taken off them, or Redis have
-- lost them.
--
-- KEYS: queue claims workers
-- ARGV: n max_bytes worker_name episode_prefix look_at most_passed patience (as many looks it leaves a first job to the
--       worker that knows its episode: for who has other work meanwhile; 0: none) wants ("all", "no copies", "done")
-- Reply: for each what job.lua returns, and a list of {episode, query id, batch index, meta, kind, batch}.
-- The first command lets it go on when Redis is full (see answer.lua): taking jobs is what empties it.

-- include job
local function look(root, query)
  if type(query) ~= 'table' or type(query[1]) ~= 'string' or type(query[2]) ~= 'string' then return end
  local index = query[3]
  if type(index) ~= 'number' or not (index >= 0 and index < 4294967296) then return end
  local kind = redis.pcall('HGET', root .. query[1] .. ':queries', query[2])
  if kind ~= 'done' then return end
  local meta = redis.pcall('HGETALL', root .. query[1])
  local batch = redis.pcall('LINDEX', root .. query[1] .. ':frames', string.format('%d', index))
  if meta.err or type(batch) ~= 'string' then return end
  return {query[1], query[2], index, meta, kind, batch}
end

local function ahead(id, root)
  local size = redis.call('HSTRLEN', 'rq:job:' .. id, 'ahead')
  if size == 0 or size > 65536 then return {} end
  local fits, queries = pcall(cjson.decode, redis.call('HGET', 'rq:job:' .. id, 'ahead'))
  local found = {}
  if fits and type(queries) == 'table' then
    for i = 1, math.min(#queries, 64) do found[#found + 1] = look(root, queries[i]) end
  end
  return found
end

local function has(job)
  for _, id in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
    if id == job or string.match(id, '^(.*)%-%d%d%-copy$') == job then return true end
  end
end

-- wants: "all", "no copies", or "done": jobs of done queries alone.
local function fits(id, wants)
  if wants == 'done' then return redis.pcall('HEXISTS', 'rq:job:' .. id, 'ahead') == 1 end
  local of = string.match(id, '^(.*)%-%d%d%-copy$')
  return not of or (wants == 'all' and not has(of))
end

local function choose(queue, me, look_at, most_passed, patience)
  local first, mine, free, others
  for _, id in ipairs(redis.call('LRANGE', queue, 0, look_at - 1)) do
    local prefers = not string.find(id, '[^%w_-]') and redis.pcall('HGET', 'rq:job:' .. id, 'prefers')
    if type(prefers) ~= 'string' then prefers = '' end
    if fits(id, ARGV[8]) then
      if not first then first, others = id, prefers end
      if prefers == me then
        mine = id
        break
      end
      if not free and prefers == '' then free = id end
    end
  end
  local id = mine or free
  local key = 'rq:job:' .. (first or '')
  if not id and first and patience > 0 and redis.call('SISMEMBER', KEYS[3], others) == 1 then
    local left = redis.pcall('HINCRBY', key, 'left', 1)
    if type(left) == 'number' and left <= patience then return end
  end
  if not id or id == first then return first end
  if not string.find(first, '[^%w_-]') and redis.call('EXISTS', key) == 1 then
    local passed = redis.pcall('HINCRBY', key, 'passed', 1)
    if type(passed) ~= 'number' or passed > most_passed then return first end
  end
  return id
end

redis.call('LREM', KEYS[2], 0, '')
redis.call('SADD', KEYS[3], ARGV[3])
local ids = {}
local look_at, most_passed = tonumber(ARGV[5]), tonumber(ARGV[6])
for i = 1, tonumber(ARGV[1]) do
  local id = redis.call('LMOVE', KEYS[2] .. ':next', KEYS[2], 'LEFT', 'RIGHT')
  if not id and look_at > 1 then
    id = choose(KEYS[1], ARGV[3], look_at, most_passed, tonumber(ARGV[7]))
    if id then
      redis.call('LREM', KEYS[1], 1, id)
      redis.call('RPUSH', KEYS[2], id)
    end
  elseif not id then id = redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT') end
  if not id then break end
  ids[i] = id
end
local jobs = {}
for i, id in ipairs(ids) do
  jobs[i] = job(id, ARGV[2])
  if jobs[i][2] == 'ok' then
    redis.call('HSET', 'rq:job:' .. id, 'status', 'started', 'worker_name', ARGV[3])
    jobs[i][7] = ahead(id, ARGV[4])
  elseif jobs[i][2] == 'unfit' then redis.call('LREM', KEYS[2], 1, id) end
end
return jobs
