-- Stores the frames of a reference, unless they are there.
-- KEYS: reference
-- ARGV: ttl, then the encoded batches
-- Reply: 'ok'

if redis.call('EXISTS', KEYS[1]) == 0 then
  for i = 2, #ARGV do redis.call('RPUSH', KEYS[1], ARGV[i]) end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 'ok'
