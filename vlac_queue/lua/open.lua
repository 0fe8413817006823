-- Opens an episode. Opening again under the same token restores what Redis has lost and changes nothing else, so it
-- may be repeated.
-- KEYS: meta frames open sizes reference users
-- ARGV: id ttl max_bytes uses_reference (1 or 0) token, then the fields of meta: name value ...
-- Reply: 'taken', 'no reference', or the number of batches there.

-- include purge
purge(KEYS[3], KEYS[4])
if redis.call('EXISTS', KEYS[1]) == 1 and redis.call('HGET', KEYS[1], 'token') ~= ARGV[5] then return 'taken' end
if ARGV[4] == '1' then
  if redis.call('EXISTS', KEYS[5]) == 0 then return 'no reference' end
  redis.call('SADD', KEYS[6], ARGV[1])
  redis.call('EXPIRE', KEYS[5], ARGV[2])
  redis.call('EXPIRE', KEYS[6], ARGV[2])
end
redis.call('HSET', KEYS[1], unpack(ARGV, 6))
redis.call('EXPIRE', KEYS[1], ARGV[2])
local batches = redis.call('LLEN', KEYS[2])
if batches == 0 then forget(KEYS[3], KEYS[4], ARGV[1]) end
redis.call('ZADD', KEYS[3], now() + ARGV[2], ARGV[1])
redis.call('HSET', KEYS[4], ':limit', ARGV[3])
return batches
