-- Keeps scores of pairs with their episodes (claim_pairs.lua says how).
-- KEYS: for each episode: meta pairs
-- ARGV: scored_by, and for each episode: token, frame at which it was found done or "", number of pairs,
--       for each pair: frame, score or "" (none: whoever wants it may claim it)
-- Reply: for each the number of scores kept with an episode that was found done now for the first time, else 0; or, where
-- some could not be kept, the first error.

local by = ARGV[1]

local function keep(k, a)
  local token, done, count = ARGV[a], ARGV[a + 1], tonumber(ARGV[a + 2])
  local meta, pairs = KEYS[k], KEYS[k + 1]
  if redis.call('HGET', meta, 'token') ~= token then return 0 end
  local of = token .. ' ' .. by
  if redis.call('HGET', pairs, 'of') ~= of then
    redis.call('DEL', pairs)
    redis.call('HSET', pairs, 'of', of)
  end
  local before, unused = redis.call('HGET', pairs, 'done'), 0
  if done ~= '' and not before then unused = redis.call('HLEN', pairs) - 1 end
  if done ~= '' and tonumber(done) > tonumber(before or -1) then redis.call('HSET', pairs, 'done', done) end
  for i = a + 3, a + 1 + 2 * count, 2 do
    if ARGV[i + 1] == '' then redis.call('HDEL', pairs, ARGV[i])
    else redis.call('HSET', pairs, ARGV[i], ARGV[i + 1]) end
  end
  redis.call('EXPIRE', pairs, redis.call('HGET', meta, 'ttl_s'))
  return unused
end

redis.pcall('HDEL', KEYS[2], '')  -- lets it go on when Redis is full (answer.lua)
local replies, a, wrong = {}, 2, nil
for i = 1, #KEYS / 2 do
  local ok, reply = pcall(keep, 2 * i - 1, a)
  if not ok then wrong = wrong or (type(reply) == 'table' and reply or {err = reply}) end
  replies[i] = ok and reply or 0
  a = a + 3 + 2 * tonumber(ARGV[a + 2])
end
return wrong or replies
