-- For other scripts: what the key of a job holds. Ids that RQ makes are letters, digits, "_" and "-": any other is a
-- stranger's, and no key is made of it.
-- Returns {id, 'ok', data, retries_left, deaths, trying}, or {id, 'gone' | 'large' | 'unfit'}; 'large' is a job whose
-- data has more than `most` bytes.

local function job(id, most)
  if #id == 0 or #id > 200 or string.find(id, '[^%w_-]') then return {string.sub(id, 1, 200), 'unfit'} end
  local size = redis.pcall('HSTRLEN', 'rq:job:' .. id, 'data')
  if type(size) ~= 'number' then
    if string.find(size.err, 'WRONGTYPE', 1, true) then return {id, 'unfit'} end
    redis.call('HSTRLEN', 'rq:job:' .. id, 'data')  -- raises: it may be a good job
  end
  if size == 0 then return {id, 'gone'} end
  if size > tonumber(most) then return {id, 'large'} end
  local fields = redis.call('HMGET', 'rq:job:' .. id, 'data', 'retries_left', 'deaths', 'trying')
  local function short(text) return string.sub(text or '', 1, 2000) end
  return {id, 'ok', fields[1], short(fields[2]), short(fields[3]), short(fields[4])}
end
