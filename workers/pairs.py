"""Scores of pairs of frames: asked ahead while no query waits, and by value queries, which workers share.

One class in more than 350 lines: choosing, claiming, scoring and answering share one state.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import redis
from msgspec import structs

from vlac_queue.errors import CriticFailed, ProtocolError, VlacQueueError
from vlac_queue.faults import passes
from vlac_queue.messages import Query
from workers.claims import COPY, Claims
from workers.critics import CriticAnswer, CriticQuery, Pair, PairCritic, compared, failed_pair
from workers.flow import Prepared
from workers.log import LOG
from workers.shared import Shared
from workers.store import PairsFound, PairsScored, PairsWanted, WorkerStore
from workers.verdicts import checked_number, failure_of, words

Result = TypeVar("Result")

#: Seconds after which a pair that another worker claimed may be claimed again, although that worker lives.
_CLAIM_S = 60.0
#: Seconds that value queries must still take for a copy of their job to be worth while for each other worker.
_SHARED_S = 0.25
#: About as many seconds a call of pairs may take, since done queries wait for it, and pairs of the first one.
_CALL_S, _FIRST_PAIRS = 0.4, 2
#: Seconds until the next look for scores that other workers are about to keep, and until scores that Redis did not
#: take are given to it again.
_LOOK_S, _KEEP_AGAIN_S = 0.01, 0.5
#: Bytes of frames of episodes that wait to be asked ahead; beyond, those that wait longest are asked at the end.
_AHEAD_BYTES = 512 << 20
#: Episodes whose scores are kept here, too.
_KEPT_EPISODES = 4096
#: Most pairs that are looked at for one call: others may have scored or claimed some.
_LOOK_AT = 1024
#: Weight of what was measured before, in each further measurement.
_MEMORY = 0.8


@dataclass
class _Episode:
    """An episode whose pairs are to be scored.

    Attributes:
        query: for a value query that one, else the done query that found it not done.
        ask: a value query with the frames.
        asked: the value query, by the job that carries it; empty for work ahead.
        failed: pairs without a score, and why.
        since: when it came, seconds on Redis' clock.
    """

    query: Query
    ask: CriticQuery
    asked: dict[str, Prepared] = field(default_factory=dict)
    failed: dict[int, Exception] = field(default_factory=dict)
    since: float = 0.0

    @property
    def deadline(self) -> float:
        """Return until when a value query is waited for: it may have been asked again."""
        return max(each.query.deadline for each in self.asked.values())

    @property
    def pairs(self) -> list[int]:
        """Return its pairs, each by the index of its second frame.

        Ahead, without a last one that is closer than the stride: it is another one once there are more frames.
        """
        frames = compared(len(self.ask.frames), self.ask.value_stride)[1:]
        return [frame for frame in frames if self.asked or frame % self.ask.value_stride == 0]

    def pair(self, frame: int) -> Pair:
        """Return the pair whose second frame is `frame`."""
        return Pair(self.ask, (frame - 1) // self.ask.value_stride * self.ask.value_stride, frame)


class Timed(Protocol):
    """Does what the critic takes time for, so that its time is counted and limited."""

    def __call__(self, work: Callable[[], Result]) -> Result: ...


class Valued(NamedTuple):
    """A value query that is done with: when it came, its answer, and whether anybody waits for that."""

    asked: Sequence[Prepared]
    since: float
    answer: CriticAnswer | None = None
    wanted: bool = True


class PairWork:
    """Scores pairs in small calls, those of value queries before those asked ahead.

    Scores are kept with the episode on Redis, and here. What Redis can't tell or take costs work that was done
    before, and never an answer. All is called by the critic's thread, but for `to_prepare` and `offer`.

    Args:
        shared: what the worker's threads share.
        critic: loaded.
        store: the episodes.
        claims: the worker's.
    """

    def __init__(self, shared: Shared, critic: PairCritic, store: WorkerStore, claims: Claims) -> None:
        self._shared = shared
        self._critic = critic
        self._store = store
        self._claims = claims
        self._trouble = shared.trouble("scores of pairs")
        self._values: dict[str, _Episode] = {}
        self._ahead: OrderedDict[str, _Episode] = OrderedDict()
        self._ahead_bytes = 0
        self._scores: OrderedDict[str, dict[int, float]] = OrderedDict()
        # What Redis is to be told: scores, and that an episode is done.
        self._unkept: list[PairsScored] = []
        self._keep_at = 0.0
        # Copies of jobs, by the job.
        self._copies: dict[str, list[str]] = {}
        # Seconds that a pair takes.
        self._pair_s = 0.0
        # Whether all that is left of value queries is another worker's.
        self._waits = False
        # Whether the log says that the critic can't tell how many pairs it wants.
        self._told = False
        self._lock = threading.Lock()
        self._to_prepare: OrderedDict[str, Query] = OrderedDict()
        self._prepared: OrderedDict[str, Prepared] = OrderedDict()

    # For the main thread.

    def to_prepare(self) -> Query | None:
        """Return a value query about an episode as it is by now whose frames are wanted for work ahead, if any."""
        with self._lock:
            return self._to_prepare.popitem(last=False)[1] if self._to_prepare else None

    @property
    def wants_frames(self) -> bool:
        """Return whether `to_prepare` has something to give, and there is room for it."""
        with self._lock:
            waiting = sum(each.nbytes for each in self._prepared.values())
            return bool(self._to_prepare) and waiting < _AHEAD_BYTES

    def offer(self, prepared: Sequence[Prepared]) -> None:
        """Take what `to_prepare` wanted, with frames."""
        with self._lock:
            self._prepared |= {each.query.token: each for each in prepared}

    @property
    def has_lists(self) -> bool:
        """Return whether value queries are at hand."""
        return bool(self._values)

    # For the critic's thread.

    def take(self, batch: Sequence[Prepared]) -> list[Prepared]:
        """Keep the value queries of a batch; return the others."""
        others = []
        for each in batch:
            if each.query.kind != "value" or not isinstance(each.ask, CriticQuery):
                others.append(each)
                continue
            now = self._shared.clock.now()
            value = self._values.setdefault(each.query.id, _Episode(each.query, each.ask, since=now))
            value.asked[each.job] = each
            self._drop_ahead(each.query.token)
            self._waits = False
        if len(others) < len(batch):
            self._hold()
        return others

    def seen(self, query: Query, *, done: bool) -> None:
        """Note the answer to a done query: pairs of an episode that goes on are worth asking ahead."""
        if done:
            self._drop_ahead(query.token)
            with self._lock:
                self._to_prepare.pop(query.token, None)
                self._prepared.pop(query.token, None)
            self._unkept.append(PairsScored(query.episode, query.token, {}, query.frame))
        elif query.frame and self._shared.config.value_ahead:
            with self._lock:
                self._to_prepare[query.token] = structs.replace(query, kind="value")

    def ready(self, *, asleep: bool) -> bool:
        """Return whether `work` has something to do now."""
        if (self._unkept and time.monotonic() >= self._keep_at) or (self._values and not self._waits):
            return True
        return not asleep and bool(self._prepared or self._ahead)

    @property
    def looks_in_s(self) -> float | None:
        """Return after how many seconds without a query to look again whether it is `ready`; None: not at all."""
        if self._values:
            return _LOOK_S
        return max(0.0, self._keep_at - time.monotonic()) if self._unkept else None

    @property
    def values(self) -> list[Prepared]:
        """Return the value queries at hand."""
        return [each for value in self._values.values() for each in value.asked.values()]

    def work(self, timed: Timed, *, asleep: bool) -> list[Valued]:
        """Make a small call; return the value queries that are done with.

        Args:
            timed: does what the critic takes time for.
            asleep: whether there is to be no work ahead.
        """
        self._receive()
        self._keep([])
        now = self._shared.clock.now()
        late = [value for value in self._values.values() if value.deadline < now]
        wanted = self._wanted(asleep)
        found = self._claim(wanted)
        gone = self._learn(wanted, found)
        mine = [(episode, pair) for (episode, _), each in zip(wanted, found, strict=True) for pair in each.mine]
        if mine:
            self._score(mine, timed)
        self._waits = not mine and not any(each.scores for each in found)
        return self._finished(late, gone, timed)

    def _receive(self) -> None:
        with self._lock:
            prepared, self._prepared = self._prepared, OrderedDict()
        for token, each in prepared.items():
            if not isinstance(each.ask, CriticQuery) or any(v.query.token == token for v in self._values.values()):
                continue
            before = self._ahead.get(token)
            if before is None or len(before.ask.frames) < len(each.ask.frames):
                self._drop_ahead(token)
                self._ahead[token] = _Episode(each.query, each.ask, failed=before.failed if before else {})
                self._ahead_bytes += each.ask.frames.nbytes
        while self._ahead_bytes > _AHEAD_BYTES and len(self._ahead) > 1:
            self._drop_ahead(next(iter(self._ahead)))

    def _hold(self) -> None:
        """Have the frames of the value queries at hand count as waiting."""
        self._shared.batcher.hold(sum(value.ask.frames.nbytes for value in self._values.values()))

    def _drop_ahead(self, token: str) -> None:
        if episode := self._ahead.pop(token, None):
            self._ahead_bytes -= episode.ask.frames.nbytes

    def _wanted(self, asleep: bool) -> list[tuple[_Episode, PairsWanted]]:
        """Return what to claim pairs of: enough for some calls, values first."""
        wanted: list[tuple[_Episode, PairsWanted]] = []
        room = _LOOK_AT
        for episode in [*self._values.values(), *(() if asleep else self._ahead.values())]:
            known = self._scores.get(episode.query.token, {})
            missing = [pair for pair in episode.pairs if pair not in known and pair not in episode.failed]
            if not missing:
                if not episode.asked:
                    self._drop_ahead(episode.query.token)
                continue
            missing = missing[:room]
            room -= len(missing)
            query = episode.query
            value = query.id if episode.asked else ""
            own = any(not job.endswith(COPY) for job in episode.asked)
            wanted.append((episode, PairsWanted(query.episode, query.token, value, query.frame, missing, own)))
            if room <= 0:
                break
        return wanted

    def _at_once(self, ask: CriticQuery) -> int:
        try:
            return max(1, int(self._critic.pairs_at_once(ask)))
        except Exception:
            if not self._told:
                LOG.exception("pairs_at_once failed; pairs are scored one by one")
            self._told = True
            return 1

    def _quick(self) -> int:
        """Return how many pairs are scored in about _CALL_S: slow hardware would seem to hang in a full call."""
        return max(1, int(_CALL_S / self._pair_s)) if self._pair_s else _FIRST_PAIRS

    def _claim(self, wanted: Sequence[tuple[_Episode, PairsWanted]]) -> list[PairsFound]:
        if not wanted:
            return []
        most = min(self._quick(), *(self._at_once(episode.ask) for episode, _ in wanted))
        try:
            found = self._store.claim_pairs(
                [each for _, each in wanted],
                most,
                scored_by=self._critic.scored_by,
                worker=self._shared.name,
                life=self._shared.life,
                claim_s=_CLAIM_S,
            )
            self._trouble.over()
        except redis.RedisError as error:
            # Value queries go on without Redis; work ahead is not worth it.
            self._trouble.met(error)
            found = []
            for _, each in wanted:
                mine = list(each.frames[:most]) if each.query else []
                most -= len(mine)
                found.append(PairsFound(not each.query, {}, mine))
        return found

    def _learn(
        self, wanted: Sequence[tuple[_Episode, PairsWanted]], found: Sequence[PairsFound]
    ) -> list[_Episode]:
        """Note what Redis knew; return the value queries that nobody waits for."""
        gone = []
        claimed = any(each.mine for each in found)
        for (episode, _), each in zip(wanted, found, strict=True):
            token = episode.query.token
            if each.scores:
                self._known(token).update(each.scores)
            if each.over and episode.asked:
                gone.append(episode)
            elif not episode.asked and (each.over or not claimed):
                self._drop_ahead(token)  # others are at it
        return gone

    def _score(self, mine: Sequence[tuple[_Episode, int]], timed: Timed) -> None:
        """Score claimed pairs in one call, and keep the scores."""
        started = time.monotonic()
        scores = timed(partial(self._asked, [episode.pair(pair) for episode, pair in mine]))
        taken_s = (time.monotonic() - started) / len(mine)
        self._pair_s = taken_s if not self._pair_s else _MEMORY * self._pair_s + (1 - _MEMORY) * taken_s
        kept: dict[str, dict[int, float | None]] = {episode.query.token: {} for episode, _ in mine}
        for (episode, pair), score in zip(mine, scores, strict=True):
            token = episode.query.token
            if isinstance(score, Exception):
                episode.failed[pair], kept[token][pair] = score, None
                continue
            self._known(token)[pair] = kept[token][pair] = score
            self._shared.stats.pairs_ahead += not episode.asked
        names = {episode.query.token: episode.query.episode for episode, _ in mine}
        self._keep([PairsScored(names[token], token, scores) for token, scores in kept.items()])

    def _asked(self, pairs: Sequence[Pair]) -> list[float | Exception]:
        """Return a score or a failure of each; where the critic fails on a call, each pair is asked on its own."""
        try:
            scores = list(self._critic.score(pairs))
            if len(scores) != len(pairs):
                raise ProtocolError(f"the critic gave {len(scores)} scores to {len(pairs)} pairs.")
        except Exception as error:
            if len(pairs) == 1:
                return [_failed(error)]
            return [score for pair in pairs for score in self._asked([pair])]
        return [_checked(score) for score in scores]

    def _keep(self, scored: Sequence[PairsScored]) -> None:
        """Keep scores, and those that Redis did not take before: others wait for what is claimed here."""
        self._unkept += scored
        if not self._unkept:
            return
        unkept, self._unkept = self._unkept, []
        try:
            self._shared.stats.pairs_unused += self._store.keep_scores(unkept, scored_by=self._critic.scored_by)
            self._trouble.over()
        except redis.RedisError as error:
            self._trouble.met(error)
            if passes(error):
                self._unkept, self._keep_at = unkept, time.monotonic() + _KEEP_AGAIN_S

    def _known(self, token: str) -> dict[int, float]:
        scores = self._scores.setdefault(token, {})
        self._scores.move_to_end(token)
        while len(self._scores) > _KEPT_EPISODES:
            self._scores.popitem(last=False)
        return scores

    def _finished(self, late: Sequence[_Episode], gone: Sequence[_Episode], timed: Timed) -> list[Valued]:
        over = {id(value): value for value in (*late, *gone)}
        finished = [Valued([*value.asked.values()], value.since, wanted=False) for value in over.values()]
        missing = 0
        for value in self._values.values():
            known = self._scores.get(value.query.token, {})
            left = sum(pair not in known for pair in value.pairs)
            if id(value) in over:
                continue
            if value.failed or not left:
                answer = self._answer(value, known, timed)
                finished.append(Valued([*value.asked.values()], value.since, answer))
                over[id(value)] = value
            missing += left
        self._values = {name: value for name, value in self._values.items() if id(value) not in over}
        if over:
            self._hold()
        self._share(missing)
        return finished

    def _answer(self, value: _Episode, known: dict[int, float], timed: Timed) -> CriticAnswer:
        for pair in value.pairs:
            if pair in value.failed:
                _, first, second = value.pair(pair)
                return failed_pair(value.failed[pair], first, second)
        try:
            return timed(partial(self._critic.value, [known[pair] for pair in value.pairs]))
        except Exception as error:
            return error

    def _share(self, missing: int) -> None:
        """Have others help where value queries would take long; jobs that wait on the queue go before that."""
        jobs = {job for value in self._values.values() for job in value.asked if not job.endswith(COPY)}
        copies = min(self._shared.others, int(missing * self._pair_s / _SHARED_S))
        try:
            for job in [job for job in self._copies if job not in jobs]:
                self._claims.unshare(self._copies.pop(job))
            if jobs and copies > 0:
                for copy, job in self._claims.share(sorted(jobs), copies):
                    self._copies.setdefault(job, []).append(copy)
        except redis.RedisError as error:
            self._trouble.met(error)


def _checked(score: object) -> float | Exception:
    if isinstance(score, Exception):
        return _failed(score)
    try:
        return checked_number(score, "a pair's score")
    except ProtocolError as error:
        return error


def _failed(error: Exception) -> CriticFailed:
    name = "" if isinstance(error, VlacQueueError) else f"{type(error).__name__}: "
    return CriticFailed(name + words(error), failure_of(error).traceback)
