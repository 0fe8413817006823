-- For other scripts: the budget of frames' bytes, and what no longer counts in it.
-- `open` is the sorted set of open episodes, `sizes` the hash of their bytes; ':total' is its sum (vlac_queue/keys.py).

local function now() return tonumber(redis.call('TIME')[1]) end

-- Takes an episode and its bytes off the books.
local function forget(open, sizes, id)
  redis.call('ZREM', open, id)
  local size = redis.call('HGET', sizes, id)
  if size then
    redis.call('HDEL', sizes, id)
    local total = redis.call('HINCRBY', sizes, ':total', -size)
    if total <= 0 then redis.call('HDEL', sizes, ':total') end
  end
  if redis.call('EXISTS', open) == 0 then redis.call('DEL', sizes) end
end

-- Forgets episodes whose time is over, so that a crashed rollout does not hold the budget.
local function purge(open, sizes)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', open, '-inf', now(), 'LIMIT', 0, 100)) do
    forget(open, sizes, id)
  end
end
