"""Every Redis key of this project, with its reason and its expiry. docs/protocol.md explains the values."""

from __future__ import annotations

from dataclasses import dataclass

#: Milliseconds until a worker that stopped beating counts as dead. Its jobs go to another one then, and
#: an answer must come within 10 s of a death; a beat every second leaves room for a busy host.
WORKER_TTL_MS = 6_000

#: Seconds until a client that neither asks nor looks for answers counts as gone: its work is dropped if it waited
#: longer than that, and its episodes when others need the room. If it comes back it asks, and pushes, again.
CLIENT_TTL_S = 30

#: Fields of `Keys.sizes` besides the episodes' own: the sum, and the limit (max_pending_bytes) of the client that
#: opened an episode last. No episode id begins with a colon.
TOTAL_FIELD, LIMIT_FIELD = ":total", ":limit"

#: The field of `Keys.orders` for all workers without one of their own; no worker is called so.
EVERYBODY = ":all"
#: Seconds until an order to critics is forgotten: workers that start later don't follow it. Longer than any update
#: of a policy, and a bound on how long an order to sleep outlives a trainer that died.
ORDERS_TTL_S = 3600

#: Seconds until what dashboards show of a run expires after its last event.
EVENTS_TTL_S = 24 * 3600
#: About as many events are kept.
EVENTS_KEPT = 1000


@dataclass(frozen=True)
class EpisodeKeys:
    """The keys of one episode. All expire `episode_ttl_s` after its last push or query; closing deletes them."""

    #: hash: task, reference id, settings of its queries. Its existence means that the episode is open.
    meta: str
    #: list: the encoded frame batches, in order.
    frames: str
    #: hash: query id -> its kind while it has no answer, then the answer's JSON text. What is not pending in here
    #: is not answered: so a query gets one answer however often its job ran, and a closed episode gets none.
    queries: str
    #: hash: the score of each pair of frames that workers have compared, by the index of the second one; "of",
    #: "done" and who is about to score one stand beside them (workers/lua/claim_pairs.lua).
    pairs: str


@dataclass(frozen=True)
class Keys:
    """The keys of one queue."""

    queue: str

    def episode(self, episode_id: str) -> EpisodeKeys:
        root = f"vlac:{self.queue}:episode:{episode_id}"
        return EpisodeKeys(meta=root, frames=f"{root}:frames", queries=f"{root}:queries", pairs=f"{root}:pairs")

    def client_answers(self, client_id: str) -> str:
        """stream: answers for one client, an entry for each batch: query id -> the answer's JSON text.

        One blocking read waits for all of a client's episodes. Trimmed as it is read; deleted when the client
        closes its last episode that waits, else expires like one. What is trimmed unread still stands with its
        episode.
        """
        return f"vlac:{self.queue}:client:{client_id}:answers"

    def client(self, client_id: str) -> str:
        """text: a client that is there; expires after CLIENT_TTL_S without a push, a question or a look."""
        return f"vlac:{self.queue}:client:{client_id}"

    def reference(self, reference_id: str) -> str:
        """list: encoded batches of reference frames, stored once under their SHA-256.

        Deleted when the last episode that uses it closes; else expires like an episode.
        """
        return f"vlac:{self.queue}:reference:{reference_id}"

    def reference_users(self, reference_id: str) -> str:
        """set: ids of the open episodes that use the reference; expires with it."""
        return f"vlac:{self.queue}:reference:{reference_id}:users"

    @property
    def open(self) -> str:
        """sorted set: open episode ids by the time at which they expire (seconds, Redis' clock).

        Empty, and so gone, once all are closed. Members of crashed rollouts are purged by later pushes.
        """
        return f"vlac:{self.queue}:open"

    @property
    def sizes(self) -> str:
        """hash: episode id -> bytes of its encoded frames, their sum and its limit (`max_pending_bytes`).

        Purged together with `open`.
        """
        return f"vlac:{self.queue}:sizes"

    @property
    def workers(self) -> str:
        """set: names of workers that may hold claims; a dead one's name goes when its claims were given back."""
        return f"vlac:{self.queue}:workers"

    def worker(self, name: str) -> str:
        """hash: what a CriticWorker says of itself every second; expires after WORKER_TTL_MS without a beat."""
        return f"vlac:{self.queue}:worker:{name}"

    def claims(self, name: str) -> str:
        """list: ids of the jobs that a worker has taken and not finished; with ":next", the one it waited for.

        No expiry: these jobs would be lost with it. Given back when the worker stops or is found dead.
        """
        return f"vlac:{self.queue}:claims:{name}"

    @property
    def alone(self) -> str:
        """list: ids of jobs that were there when workers died, up to their last try: one query at a time.

        No expiry, as `rq_queue`.
        """
        return f"vlac:{self.queue}:alone"

    @property
    def events(self) -> str:
        """stream: failed queries and outcomes of episodes, for people; one JSON text in the field "e" each.

        About EVENTS_KEPT entries, expires EVENTS_TTL_S after the last.
        """
        return f"vlac:{self.queue}:events"

    @property
    def totals(self) -> str:
        """hash: sums over the outcomes of training, for people; expires EVENTS_TTL_S after the last."""
        return f"vlac:{self.queue}:totals"

    @property
    def orders(self) -> str:
        """hash: worker's name, or EVERYBODY -> the last order to its critic, "sleep ID" or "wake ID".

        A worker reads it with each beat and follows each order once, so none is lost where a connection breaks or
        a worker starts meanwhile, as a message would be. Expires ORDERS_TTL_S after the last.
        """
        return f"vlac:{self.queue}:orders"

    # RQ's own keys, as of RQ 3.

    @property
    def rq_queue(self) -> str:
        """list: ids of waiting jobs."""
        return f"rq:queue:{self.queue}"

    @property
    def rq_queues(self) -> str:
        """set: keys of all queues, so that `rq info` finds ours."""
        return "rq:queues"

    @property
    def rq_workers(self) -> str:
        """set: keys of the workers registered on the queue, the dead among them until RQ's maintenance."""
        return f"rq:workers:{self.queue}"

    def job_id(self, unique: str) -> str:
        """An id for a job of this queue; `unique` are 32 hexadecimal digits.

        It begins with the queue's name, as RQ allows it to be spelled, so that rights can be given to the jobs of
        one queue.
        """
        return f"{self.queue.replace('.', '_')}_{unique}"

    @staticmethod
    def rq_job(job_id: str) -> str:
        """hash: a job; expires like an episode, deleted when all its queries are answered."""
        return f"rq:job:{job_id}"
