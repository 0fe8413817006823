"""Claims: which jobs a worker has taken from the queue and not finished, so that none is lost with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis

from vlac_queue.keys import Keys
from vlac_queue.messages import MAX_JOB_BYTES

# What a job's key holds. RQ's ids are letters, digits, "_" and "-": any other is a stranger's, and no key is made
# of it. Reply: {id, "ok", data}, or {id, "gone" | "large" | "unfit"}.
_JOB = """
local function job(id, most)
  if #id == 0 or #id > 200 or string.find(id, '[^%w_-]') then return {string.sub(id, 1, 200), 'unfit'} end
  local size = redis.pcall('HSTRLEN', 'rq:job:' .. id, 'data')
  if type(size) ~= 'number' then return {id, 'unfit'} end
  if size == 0 then return {id, 'gone'} end
  if size > tonumber(most) then return {id, 'large'} end
  return {id, 'ok', redis.call('HGET', 'rq:job:' .. id, 'data')}
end
"""

# Takes up to n jobs and reads them; what is unfit is dropped. KEYS queue claims; ARGV first_id n max_bytes
# worker_name. Reply: as _JOB for each.
_TAKE = (
    _JOB
    + """
local ids = {ARGV[1]}
for i = 2, tonumber(ARGV[2]) do
  local id = redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT')
  if not id then break end
  ids[i] = id
end
local jobs = {}
for i, id in ipairs(ids) do
  jobs[i] = job(id, ARGV[3])
  if jobs[i][2] == 'ok' then redis.call('HSET', 'rq:job:' .. id, 'status', 'started', 'worker_name', ARGV[4])
  elseif jobs[i][2] == 'unfit' then redis.call('LREM', KEYS[2], 1, id) end
end
return jobs
"""
)

# Puts a stopping worker's jobs back to the front of the queue, in their order. KEYS queue claims.
_GIVE_BACK = (
    _JOB
    + """
local count = 0
while true do
  local id = redis.call('RPOP', KEYS[2])
  if not id then return count end
  -- Any data is "large" beside 0 bytes: so it is there, and not read.
  if job(id, 0)[2] == 'large' then
    redis.call('HSET', 'rq:job:' .. id, 'status', 'queued')
    redis.call('LPUSH', KEYS[1], id)
    count = count + 1
  end
end
"""
)

# The same for a dead worker, at the cost of one retry for each job. Jobs without retries left may be what
# killed it: they go to the claims of the finder, who fails their queries. KEYS queue claims_of_dead workers
# worker_key claims_of_finder; ARGV name_of_dead max_bytes. Reply: {number given back, spent jobs as _JOB}.
_RECOVER = (
    _JOB
    + """
if redis.call('EXISTS', KEYS[4]) == 1 then return {0, {}} end
local count, spent = 0, {}
while true do
  local id = redis.call('RPOP', KEYS[2])
  if not id then break end
  local found = job(id, ARGV[2])
  if found[2] == 'ok' or found[2] == 'large' then
    local left = redis.pcall('HINCRBY', 'rq:job:' .. id, 'retries_left', -1)
    if type(left) == 'number' and left >= 0 then
      redis.call('HSET', 'rq:job:' .. id, 'status', 'queued')
      redis.call('LPUSH', KEYS[1], id)
      count = count + 1
    else
      redis.call('RPUSH', KEYS[5], id)
      spent[#spent + 1] = found
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
    """

    id: str
    data: bytes | None
    unfit: bool = False


class Claims:
    """The claims of one worker. Threads may share it; all errors are Redis' own."""

    def __init__(self, connection: redis.Redis, keys: Keys, worker: str) -> None:
        self._connection = connection
        self._keys = keys
        self._worker = worker
        #: The list of claimed job ids.
        self.key = keys.claims(worker)

    def take(self, count: int, *, block_s: float) -> list[TakenJob]:
        """Claims and reads up to `count` jobs, waiting up to `block_s` seconds for the first (0: not at all)."""
        first: Any
        if block_s:
            first = self._connection.execute_command(
                "BLMOVE", self._keys.rq_queue, self.key, "LEFT", "RIGHT", block_s
            )
        else:
            first = self._connection.lmove(self._keys.rq_queue, self.key, "LEFT", "RIGHT")
        if first is None:
            return []
        taken: Any = self._connection.eval(
            _TAKE, 2, self._keys.rq_queue, self.key, first, count, MAX_JOB_BYTES, self._worker
        )
        return [_taken(entry) for entry in taken]

    def add(self, job_id: str) -> None:
        """Claims a job that came by another way."""
        self._connection.rpush(self.key, job_id)

    def give_back(self) -> int:
        """Puts all claimed jobs back to the front of the queue; how many."""
        return int(self._connection.eval(_GIVE_BACK, 2, self._keys.rq_queue, self.key))

    def recover(self, worker: str) -> tuple[int, list[TakenJob]]:
        """Puts the jobs of a dead worker back, each at the cost of a retry.

        Returns:
            How many went back, and the jobs without retries left, which are this worker's to fail now. A
            worker that lives after all keeps its jobs.
        """
        keys = self._keys
        names = (keys.rq_queue, keys.claims(worker), keys.workers, keys.worker(worker), self.key)
        reply: Any = self._connection.eval(_RECOVER, len(names), *names, worker, MAX_JOB_BYTES)
        return reply[0], [_taken(entry) for entry in reply[1]]


def _taken(entry: list[bytes]) -> TakenJob:
    job_id, state = entry[0].decode(errors="replace"), entry[1]
    data = {b"ok": entry[-1], b"gone": b"", b"large": None, b"unfit": b""}[state]
    return TakenJob(job_id, data, unfit=state == b"unfit")
