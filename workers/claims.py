"""Claims: which jobs a worker has taken from the queue and not finished, so that none is lost with it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import redis
from redis.client import Pipeline

from vlac_queue.connection import Script, checked, exchange
from vlac_queue.faults import Fault, fault_of
from vlac_queue.keys import Keys
from vlac_queue.messages import MAX_JOB_BYTES
from vlac_queue.metrics import first_line
from vlac_queue.store import ReadAhead, episode_read

#: Jobs at the front of the queue among which a worker chooses.
_LOOK_AT = 32
#: Seconds between two looks at the queue while Redis is full and refuses to be waited on.
_FULL_PAUSE_S = 0.1

# What a job's key holds. RQ's ids are letters, digits, "_" and "-": any other is a stranger's, and no key is made
# of it. Reply: {id, "ok", data, retries_left, deaths, trying}, or {id, "gone" | "large" | "unfit"}.
_JOB = """
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
"""

# What a worker was waiting for goes to a list of its own first, and from there to its claims: so the script that
# takes can stand right behind the command that waits, on the same connection. KEYS[2]: claims.
_SETTLE = """
while redis.call('LMOVE', KEYS[2] .. ':next', KEYS[2], 'LEFT', 'RIGHT') do end
"""

# Takes up to n jobs and reads them; what is unfit is dropped. With a job comes what its worker would ask for next:
# the episodes of its done queries and the one batch that each is about (field "ahead" of the job, a JSON list of
# episode, query id and batch index), so that a worker that knows the frame before needs no further round trip.
# Where jobs wait, a worker takes first those whose episodes it knows ("prefers"; of others it has to read and
# decode all that it did not see), then those that nobody knows, then the first. The first is passed over a few
# times only. First of all the worker's name goes to those whose death is noticed: it may have been taken off them,
# or Redis have lost them. KEYS queue claims workers; ARGV n max_bytes worker_name episode_prefix look_at
# most_passed. Reply: as _JOB for each, and a list of {episode, query id, batch index, meta, kind, batch}. The
# first command lets it go on when Redis is full (see store.py): taking jobs is what empties it.
_TAKE = Script(
    _JOB
    + """
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
local function choose(queue, me, look_at, most_passed)
  local ids = redis.call('LRANGE', queue, 0, look_at - 1)
  local mine, free
  for i, id in ipairs(ids) do
    local prefers = not string.find(id, '[^%w_-]') and redis.pcall('HGET', 'rq:job:' .. id, 'prefers')
    if prefers == me then
      mine = id
      break
    end
    if not free and (type(prefers) ~= 'string' or prefers == '') then free = id end
  end
  local id = mine or free
  if not id or id == ids[1] then return ids[1] end
  local first = 'rq:job:' .. ids[1]
  if not string.find(ids[1], '[^%w_-]') and redis.call('EXISTS', first) == 1 then
    local passed = redis.pcall('HINCRBY', first, 'passed', 1)
    if type(passed) ~= 'number' or passed > most_passed then return ids[1] end
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
    id = choose(KEYS[1], ARGV[3], look_at, most_passed)
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
"""
)

# Puts jobs back to the front of the queue, in their order; those on their last try wait to be tried alone.
# KEYS queue claims alone; ARGV ids, or none for all. Reply: how many.
_GIVE_BACK = (
    _JOB
    + _SETTLE
    + """
local ids, count = ARGV, 0
if #ids == 0 then ids = redis.call('LRANGE', KEYS[2], 0, -1) end
for i = #ids, 1, -1 do
  local id = ids[i]
  local key = 'rq:job:' .. id
  -- Any data is "large" beside 0 bytes: so it is there, and not read. Where this raises, the claim stays.
  local state = job(id, 0)[2]
  if redis.call('LREM', KEYS[2], 1, id) == 1 and state == 'large' then
    redis.call('HSET', key, 'status', 'queued')
    local left, deaths = unpack(redis.call('HMGET', key, 'retries_left', 'deaths'))
    left = tonumber(left)
    if deaths and left and left <= 0 then
      if left == 0 then redis.call('HDEL', key, 'trying') end
      redis.call('RPUSH', KEYS[3], id)
    else
      redis.call('LPUSH', KEYS[1], id)
    end
    count = count + 1
  end
end
return count
"""
)

# The same for a dead worker, at the cost of one retry for each job, and noted in its history. Before its last try
# a job waits to be tried alone. Jobs without retries left go to the claims of the finder, who fails their queries.
# KEYS queue claims_of_dead workers worker_key claims_of_finder alone; ARGV name_of_dead max_bytes name_of_finder.
# Reply: {number given back, spent jobs as _JOB}.
_RECOVER = (
    _JOB
    + """
if redis.call('EXISTS', KEYS[4]) == 1 then return {0, {}} end
"""
    + _SETTLE
    + """
local count, spent, now = 0, {}, redis.call('TIME')[1]
local ids = redis.call('LRANGE', KEYS[2], 0, -1)
for i = #ids, 1, -1 do
  local id = ids[i]
  local key = 'rq:job:' .. id
  local state = job(id, 0)[2]
  redis.call('LREM', KEYS[2], -1, id)
  if state == 'large' then
    local left = redis.pcall('HINCRBY', key, 'retries_left', -1)
    local deaths = string.sub((redis.call('HGET', key, 'deaths') or '') .. ARGV[1] .. '@' .. now .. ' ', 1, 2000)
    redis.call('HSET', key, 'status', 'queued', 'deaths', deaths)
    if type(left) == 'number' and left > 0 then
      redis.call('LPUSH', KEYS[1], id)
      count = count + 1
    elseif left == 0 then
      redis.call('RPUSH', KEYS[6], id)
      count = count + 1
    else
      redis.call('HSET', key, 'status', 'started', 'worker_name', ARGV[3])
      redis.call('RPUSH', KEYS[5], id)
      spent[#spent + 1] = job(id, ARGV[2])
    end
  end
end
redis.call('SREM', KEYS[3], ARGV[1])
return {count, spent}
"""
)


@dataclass(frozen=True)
class TakenJob:
    """A job as it stands on Redis.

    Attributes:
        id: the RQ job's id.
        data: its envelope, not unpacked; b"" where the job is gone, None where it exceeds MAX_JOB_BYTES.
        unfit: whether it is no job at all (an id that RQ does not make, a key of a wrong type); dropped already.
        spent: whether workers died with it more often than it may be tried again.
        deaths: the workers that died with it, and when (seconds since 1970 on Redis' clock).
        trying: id of the query that was tried alone last, or "".
        ahead: what was read along with the job, by query id.
    """

    id: str
    data: bytes | None
    unfit: bool = False
    spent: bool = False
    deaths: tuple[tuple[str, float], ...] = ()
    trying: str = ""
    ahead: Mapping[str, ReadAhead] = field(default_factory=dict, repr=False)


class Claims:
    """The claims of one worker. Threads may share it; all errors are Redis' own."""

    def __init__(self, connection: redis.Redis, keys: Keys, worker: str) -> None:
        self._connection = connection
        self._keys = keys
        self._worker = worker
        #: The list of claimed job ids.
        self.key = keys.claims(worker)

    def take(self, count: int, *, block_s: float, others: int = 0) -> list[TakenJob]:
        """Claims and reads up to `count` jobs, waiting up to `block_s` seconds for the first (0: not at all).

        Args:
            others: how many other workers serve the queue; with none, jobs are taken in their order.
        """
        look_at = _LOOK_AT if others else 1
        take = self._take_command(self._keys.rq_queue, count, look_at, 2 * others)
        if not block_s:
            return [_taken(entry) for entry in checked(exchange(self._connection, [take])[0])]
        wait = ("BLMOVE", self._keys.rq_queue, f"{self.key}:next", "LEFT", "RIGHT", str(block_s))
        waited, taken = exchange(self._connection, [wait, take])
        if isinstance(waited, redis.RedisError) and fault_of(waited) is Fault.FULL:
            if not taken:
                time.sleep(_FULL_PAUSE_S)
        else:
            checked(waited)
        return [_taken(entry) for entry in checked(taken)]

    def take_alone(self) -> list[TakenJob]:
        """Claims and reads one of the jobs that are tried alone, without waiting."""
        (taken,) = exchange(self._connection, [self._take_command(self._keys.alone, 1)])
        return [_taken(entry) for entry in checked(taken)]

    def trying(self, job_id: str, query_id: str) -> None:
        """Notes which query of a job is tried now: the one to blame, should this worker die."""
        self._connection.hset(self._keys.rq_job(job_id), "trying", query_id)

    def spare(self, job_id: str, pipeline: Pipeline) -> None:
        """Adds to `pipeline` what lets a spent job's other queries be tried alone, now that one was blamed."""
        pipeline.lrem(self.key, 0, job_id)
        pipeline.hset(self._keys.rq_job(job_id), mapping={"retries_left": 0, "status": "queued"})
        pipeline.hdel(self._keys.rq_job(job_id), "trying")
        pipeline.rpush(self._keys.alone, job_id)

    def add(self, job_ids: Collection[str]) -> None:
        """Claims jobs that came by another way, or whose claims Redis has lost."""
        self._connection.rpush(self.key, *job_ids)

    def give_back(self, job_ids: Collection[str] = ()) -> int:
        """Puts claimed jobs (none given: all) back to the front of the queue; how many."""
        keys = (self._keys.rq_queue, self.key, self._keys.alone)
        return int(self._connection.eval(_GIVE_BACK, len(keys), *keys, *job_ids))

    def recover(self, worker: str) -> tuple[int, list[TakenJob]]:
        """Puts the jobs of a dead worker back, each at the cost of a retry.

        Returns:
            How many went back, and the jobs without retries left, which are this worker's to fail now. A
            worker that lives after all keeps its jobs.
        """
        keys = self._keys
        names = (keys.rq_queue, keys.claims(worker), keys.workers, keys.worker(worker), self.key, keys.alone)
        reply: Any = self._connection.eval(_RECOVER, len(names), *names, worker, MAX_JOB_BYTES, self._worker)
        return reply[0], [_taken(entry) for entry in reply[1]]

    def _take_command(self, queue: str, count: int, look_at: int = 1, most_passed: int = 0) -> tuple[Any, ...]:
        words = (count, MAX_JOB_BYTES, self._worker, self._keys.episode("").meta, look_at, most_passed)
        return ("EVAL", _TAKE, 3, queue, self.key, self._keys.workers, *words)


def history(deaths: Sequence[tuple[str, float]]) -> str:
    """The workers that died with a job, and when, for people."""
    return ", ".join(
        f"{first_line(name)} at {datetime.fromtimestamp(when, timezone.utc):%H:%M:%S} UTC" for name, when in deaths
    )


def _taken(entry: list[Any]) -> TakenJob:
    job_id, state, *fields = entry
    name = job_id.decode(errors="replace")
    if state != b"ok":
        return TakenJob(name, None if state == b"large" else b"", unfit=state == b"unfit")
    data, left, deaths, trying, *ahead = fields
    died = [_death(text) for text in deaths.decode(errors="replace").split()]
    # What is no number was counted down no further: it is spent at the first death.
    spent = bool(died) and not (left.isdigit())
    return TakenJob(
        name,
        data,
        spent=spent,
        deaths=tuple(died),
        trying=trying.decode(errors="replace"),
        ahead=dict(map(_read_ahead, ahead[0] if ahead else ())),
    )


def _read_ahead(entry: list[Any]) -> tuple[str, ReadAhead]:
    episode, query_id, index, meta, _, batch = entry
    name = query_id.decode(errors="replace")
    return name, ReadAhead(episode.decode(errors="replace"), index, episode_read(meta, [name], [batch]))


def _death(text: str) -> tuple[str, float]:
    name, _, when = text.rpartition("@")
    return name, float(when) if when.isdigit() and len(when) < 12 else 0.0
