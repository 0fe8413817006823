-- Closes episodes whose client has not been heard of for a while.
-- KEYS: open sizes
-- ARGV: what the keys of episodes, of clients and of references begin with
-- Reply: how many.

-- include purge
local count = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local meta = ARGV[1] .. id
  local client, reference = unpack(redis.call('HMGET', meta, 'client', 'reference'))
  if client and redis.call('EXISTS', ARGV[2] .. client) == 0 then
    redis.call('DEL', meta, meta .. ':frames', meta .. ':queries', meta .. ':pairs')
    forget(KEYS[1], KEYS[2], id)
    local users = ARGV[3] .. reference .. ':users'
    if redis.call('SREM', users, id) == 1 and redis.call('SCARD', users) == 0 then
      redis.call('DEL', ARGV[3] .. reference, users)
    end
    count = count + 1
  end
end
return count
