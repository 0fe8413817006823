-- Writes answers of one client. Only what is pending is answered.
-- KEYS: client_stream, and for each answer: queries of its episode
-- ARGV: ttl kept worker, and for each answer: query_id answer
-- Reply: 1 or 0 for each: whether it was written.
-- A script that has written may go on when Redis is full, hence the first command: answers must get through, since
-- closing episodes is what frees memory.

redis.call('EXPIRE', KEYS[1], ARGV[1])
local written, news = {}, {'@', ARGV[3]}
for i = 1, #KEYS - 1 do
  local id, answer = ARGV[2 * i + 2], ARGV[2 * i + 3]
  local kind = redis.pcall('HGET', KEYS[i + 1], id)
  written[i] = 0
  if kind == 'done' or kind == 'value' then
    redis.call('HSET', KEYS[i + 1], id, answer)
    news[#news + 1], news[#news + 2] = id, answer
    written[i] = 1
  end
end
if #news > 2 then
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', unpack(news))
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return written
