-- Closes episodes: deletes their keys, and those of a reference that no other episode uses.
-- KEYS: open sizes, and for each episode: meta frames queries reference users
-- ARGV: the id of each
-- Reply: 'ok'

-- include purge
for i = 1, #ARGV do
  local k = 5 * i - 2
  redis.call('DEL', KEYS[k], KEYS[k + 1], KEYS[k + 2], KEYS[k] .. ':pairs')
  forget(KEYS[1], KEYS[2], ARGV[i])
  if redis.call('SREM', KEYS[k + 4], ARGV[i]) == 1 and redis.call('SCARD', KEYS[k + 4]) == 0 then
    redis.call('DEL', KEYS[k + 3], KEYS[k + 4])
  end
end
return 'ok'
