-- Claims pairs of episodes to be scored, up to so many, and reads what is known of the others.
--
-- An episode's pairs are a hash: the index of a pair's second frame -> its score, or "?", until when (seconds) and in
-- which life of which worker it is being scored (one that begins anew under its name lives anew). Beside them stand
-- "of": whose scores they are (token of the episode, `scored_by` of the
-- critic), and "done": the frame at which the episode was last found done.
--
-- KEYS: for each episode: meta queries pairs
-- ARGV: worker, its life, what keys of workers begin with, seconds of a claim, most pairs, scored_by,
--       and for each episode: token, id of the value query or "", frame at which it was not done, number of pairs,
--       1 where deaths are counted (a value query with its own job) else 0, frames
-- Reply: for each {"gone"} (closed, answered), {"done"} or {"ok", score, "" (claimed) or "?" (not claimed) of each pair}.
-- A value query may take over what a dead worker had: its job counts the deaths. Work ahead and copies of jobs count
-- none, and so leave an episode alone of which a worker died. An error is the reply: who asked goes on without Redis.

local me, workers, lasts, left, by = ARGV[2] .. ' ' .. ARGV[1], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local now = tonumber(redis.call('TIME')[1])

local function claim(k, a)
  local token, query, undone, count = ARGV[a], ARGV[a + 1], tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
  local own = ARGV[a + 4] == '1'
  local meta, pairs = KEYS[k], KEYS[k + 2]
  if redis.call('HGET', meta, 'token') ~= token then return {'gone'} end
  if query ~= '' and redis.call('HGET', KEYS[k + 1], query) ~= 'value' then return {'gone'} end
  local of, done = unpack(redis.call('HMGET', pairs, 'of', 'done'))
  if of ~= token .. ' ' .. by then
    redis.call('DEL', pairs)
    done = false
  elseif query == '' and done and tonumber(done) > undone then return {'done'} end
  local reply, mine = {'ok'}, {}
  for i = 1, count do
    local frame = ARGV[a + 4 + i]
    local known = redis.call('HGET', pairs, frame) or ''
    local till, whose = string.match(known, '^%?(%d+) (.*)$')
    if till and whose ~= me then
      local life, name = string.match(whose, '^(%w+) (.*)$')
      if not life or redis.call('HGET', workers .. name, 'life') ~= life then
        if not own then return {'gone'} end
        known = ''
      elseif tonumber(till) < now then known = '' end
    elseif till then known = '' end
    if known == '' and left > 0 then
      left = left - 1
      mine[#mine + 1], mine[#mine + 2] = frame, string.format('?%d %s', now + lasts, me)
    elseif known == '' or till then known = '?' end
    reply[i + 1] = known
  end
  if #mine > 0 then
    redis.call('HSET', pairs, 'of', token .. ' ' .. by, unpack(mine))
    redis.call('EXPIRE', pairs, redis.call('HGET', meta, 'ttl_s'))
  end
  return reply
end

redis.pcall('HDEL', KEYS[3], '')  -- lets it go on when Redis is full (answer.lua)
local replies, a = {}, 7
for i = 1, #KEYS / 3 do
  local ok, reply = pcall(claim, 3 * i - 2, a)
  if not ok then return type(reply) == 'table' and reply or {err = reply} end
  replies[i] = reply
  a = a + 5 + tonumber(ARGV[a + 3])
end
return replies
