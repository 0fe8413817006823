"""`RolloutGate`: the training rule for a vector of episodes, for any RL framework.

One class in more than 350 lines: half of them are its documentation, and its parts share one state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from vlac_queue.audit import DoneAudit
from vlac_queue.client import CriticClient, Episode, Pending
from vlac_queue.errors import ConfigError, CriticTimeout, FrameError, ProtocolError, VlacQueueError
from vlac_queue.frames import Frames
from vlac_queue.messages import DoneVerdict, ValueVerdict
from vlac_queue.rule import Course, Outcome

_log = logging.getLogger(__name__)

#: The caller's mistakes: raised whatever `on_failure` says, since trying again or masking can't mend them.
_MISTAKES = (FrameError, ProtocolError, ConfigError)


class RolloutGate:
    """Decides when training episodes end and what their rewards are.

        with RolloutGate(client, tasks) as gate:
            gate.push({i: first_frame[i] for i in range(n)})        # optional: what was seen before the first step
            for step in range(1, max_steps + 1):
                ...                                                # policy and simulator
                gate.observe(step, {i: frames[i] for i in active})
                active -= gate.finished()
            outcomes = gate.settle()

    With `overlap`, `observe` never waits for the critic: a late "done" ends the episode at the step that it
    was about, so the outcomes are those of waiting each time. What was simulated after that step is wasted,
    and must be masked by the caller (everything after `Outcome.finish_step`).

    Args:
        client: asks the critic; its configuration gives the defaults of what follows.
        tasks: each episode's task in words.
        references: frames of a successful run for each episode, or None; None for all uses the configuration's.
        overlap: whether to go on while the critic works.
        on_failure: what a failed query does: "raise" it, "mask" its episode, or "retry" it (then raise). What
            could not be sent for `patience_s` is not tried again.
        retries: how often "retry" asks again.
        done_confirm: at how many steps in a row the critic must say done; the episode ends at the last of them.

    Raises:
        ConfigError: `on_failure` or `done_confirm` is none of those.
        ProtocolError, FrameError, RedisUnavailable: an episode could not be opened.
    """

    def __init__(
        self,
        client: CriticClient,
        tasks: Sequence[str],
        *,
        references: Sequence[Frames | str | Path | None] | None = None,
        overlap: bool | None = None,
        on_failure: str | None = None,
        retries: int | None = None,
        done_confirm: int | None = None,
    ) -> None:
        config = client.config
        self.overlap = config.overlap if overlap is None else overlap
        self.on_failure = config.on_failure if on_failure is None else on_failure
        self.retries = config.retries if retries is None else retries
        self.done_confirm = config.done_confirm if done_confirm is None else done_confirm
        if self.done_confirm < 1:
            raise ConfigError(f"done_confirm must be 1 or more steps, not {self.done_confirm!r}.")
        if self.on_failure not in ("raise", "mask", "retry"):
            raise ConfigError(f"on_failure must be raise, mask or retry, not {self.on_failure!r}.")
        if isinstance(tasks, str):
            raise ProtocolError(f"tasks must be a list of texts, one for each episode: [{tasks[:80]!r}, ...].")
        if references is not None and len(references) != len(tasks):
            raise ProtocolError(f"{len(references)} references were given for {len(tasks)} tasks.")
        self._client = client
        self._tasks = list(tasks)
        self._references = [None] * len(tasks) if references is None else list(references)
        self._audit = DoneAudit(client)
        self._runs: list[_Run] = []
        try:
            episodes = client.episodes(self._tasks, self._references)
            self._runs += [_Run(episode, self.done_confirm) for episode in episodes]
        except BaseException:
            self.close()
            raise

    @property
    def episodes(self) -> list[Episode]:
        """The episodes, in the order of the tasks; for their counters."""
        return [run.episode for run in self._runs]

    @property
    def scores(self) -> list[float]:
        """The critic's score of each episode, 0..1, in the answer that came last; NaN before the first."""
        return [run.score for run in self._runs]

    @property
    def critic_s(self) -> float:
        """Seconds that waiting for each answer that counts would have taken; complete after `settle`.

        The longest at each step, summed. What was asked after an episode's end does not count.
        """
        longest: dict[int, float] = {}
        for run in self._runs:
            end = run.decisive
            for step, seconds in run.answer_s.items():
                if end is None or step <= end:
                    longest[step] = max(longest.get(step, 0.0), seconds)
        return sum(longest.values()) + max((run.value_s for run in self._runs), default=0.0)

    def push(self, frames: Mapping[int, Frames] | Frames) -> None:
        """Add frames to episodes without asking about them, e.g. those seen before the first step.

        Args:
            frames: as `observe` takes them.

        Raises:
            FrameError, ProtocolError: they are not usable.
        """
        seen = self._by_index(frames)
        self._check_indices(seen)
        self._send(seen)

    def observe(self, step: int | None, frames: Mapping[int, Frames] | Frames) -> None:
        """Take what was seen after a step, and ask the critic whether the task is done.

        Args:
            step: number of the step, ascending for each episode; None is the next one of each, counted from 1.
            frames: index of the episode -> its new frames, uint8 (T,H,W,3) or (H,W,3), RGB; the critic is
                asked about the last. Or an array of all N episodes, (N,T,H,W,3) or (N,H,W,3). Episodes known to
                be over are passed over, so all may be given.

        Raises:
            VlacQueueError: the critic or the queue failed, and `on_failure` says to raise it.
            FrameError, ProtocolError: frames, indices or steps are not usable.
        """
        seen = self._by_index(frames)
        if step is None:
            self._check_indices(seen)
        else:
            self._check_ascending(step, seen)
        if self.overlap:
            self._take_in()
        runs = self._send(seen, lambda run: run.last + 1 if step is None else step)
        if not self.overlap:
            self._wait(runs)
            self._ask_audit()

    def fail(self, step: int, errors: Mapping[int, VlacQueueError]) -> None:
        """End episodes that can't go on for a reason of the caller's, e.g. a simulator that broke.

        They count as if the critic had failed at `step`: what it says of earlier steps, even if that comes
        late, goes first. Episodes known to be over are passed over.

        Args:
            step: number of the step that failed, after those observed.
            errors: index of the episode -> why it can't go on.

        Raises:
            ProtocolError: the step is not after those observed.
        """
        self._check_ascending(step, errors)
        for index, error in errors.items():
            run = self._runs[index]
            if not run.over:
                run.steps.append(step)
                run.answers[step] = error

    def finished(self) -> frozenset[int]:
        """Return the indices of the episodes known to be over, without waiting.

        Raises:
            VlacQueueError: the critic failed, and `on_failure` says to raise it.
        """
        self._take_in()
        return frozenset(index for index, run in enumerate(self._runs) if run.over)

    def settle(self, indices: Iterable[int] | None = None) -> list[Outcome]:
        """End episodes: wait for what is out, ask the values of those that were never done.

        Args:
            indices: which ones; None is all.

        Returns:
            One outcome for each of them, in their order; the same ones when called again.

        Raises:
            VlacQueueError: the critic failed, and `on_failure` says to raise it.
            ProtocolError: an episode was never observed.
        """
        chosen = list(range(len(self._runs)) if indices is None else indices)
        self._check_indices(chosen)
        if unsettled := [index for index in chosen if self._runs[index].told is None]:
            self._settle(unsettled)
        return [told for index in chosen if (told := self._runs[index].told) is not None]

    def reopen(self, indices: Iterable[int], tasks: Sequence[str] | None = None) -> None:
        """Close episodes, and open new ones in their places: their environments were reset.

        Args:
            indices: which ones.
            tasks: the new ones' tasks in words, in the order of `indices`; None keeps those they had.

        Raises:
            ProtocolError, RedisUnavailable: an episode could not be opened.
        """
        chosen = list(indices)
        self._check_indices(chosen)
        self._client.close_many([self._runs[index].episode for index in chosen])
        self._audit.forget([self._runs[index].episode.id for index in chosen])
        if tasks is not None:
            for index, task in zip(chosen, tasks, strict=True):
                self._tasks[index] = task
        news = [self._tasks[index] for index in chosen], [self._references[index] for index in chosen]
        for index, episode in zip(chosen, self._client.episodes(*news), strict=True):
            self._runs[index] = _Run(episode, self.done_confirm)

    def close(self) -> None:
        """Close the episodes: their keys leave Redis."""
        self._client.close_many(self.episodes)

    def __enter__(self) -> RolloutGate:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._client.leave(self.episodes, raised[1])

    def _settle(self, indices: Sequence[int]) -> None:
        runs = [self._runs[index] for index in indices]
        for index, run in zip(indices, runs, strict=True):
            if not run.steps and run.failure is None:
                raise ProtocolError(f"episode {index} was never observed; call observe() before settle().")
        self._wait(runs)
        self._await_values([run for run in runs if run.decisive is None and run.failure is None])
        audit = self._audit.contradicted()
        for run in runs:
            run.told = replace(run.outcome(), contradicted=audit.get(run.episode.id))
        try:
            self._client.publish_outcomes([(run.episode, run.told) for run in runs if run.told])
        except VlacQueueError as error:
            # They are for people; training has them all the same.
            _log.warning("outcomes of %d episodes are missing on dashboards: %s", len(runs), error)

    def _by_index(self, frames: Mapping[int, Frames] | Frames) -> Mapping[int, Frames]:
        """Return frames by the index of their episode.

        Raises:
            FrameError: neither a mapping nor an array of all episodes.
        """
        if isinstance(frames, Mapping):
            return frames
        if not isinstance(frames, np.ndarray) or frames.ndim not in (4, 5) or len(frames) != len(self._runs):
            got = f"shape {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
            raise FrameError(
                f"frames must be a mapping {{index: frames}}, or an array of all {len(self._runs)} episodes, "
                f"uint8 (N,H,W,3) or (N,T,H,W,3), not {got}."
            )
        return dict(enumerate(frames))

    def _check_indices(self, indices: Iterable[int]) -> None:
        for index in indices:
            if index not in range(len(self._runs)):
                raise ProtocolError(
                    f"there is no episode {index!r}: this gate has {len(self._runs)}, counted from 0."
                )

    def _check_ascending(self, step: int, indices: Collection[int]) -> None:
        self._check_indices(indices)
        for index in indices:
            run = self._runs[index]
            if run.steps and step <= run.last:
                raise ProtocolError(
                    f"episode {index} was observed at step {run.last} already, step {step} must be later."
                )

    def _send(self, frames: Mapping[int, Frames], step_of: Callable[[_Run], int] | None = None) -> list[_Run]:
        """Push to the episodes that go on, and at a step ask about them; return those that got their frames."""
        left = [(self._runs[index], batch) for index, batch in frames.items() if not self._runs[index].over]
        pushes = [(run.episode, batch) for run, batch in left]
        results: Sequence[Pending[Any] | VlacQueueError | None]
        try:
            results = self._client.push_each(pushes) if step_of is None else self._client.observe_each(pushes)
        except _MISTAKES:
            raise
        except VlacQueueError as error:
            results = [error] * len(left)
        outcomes = [(run, result) for (run, _), result in zip(left, results, strict=True)]
        failed = [(run, each) for run, each in outcomes if isinstance(each, VlacQueueError)]
        for run, sent in outcomes:
            if step_of is not None and sent is not None and not isinstance(sent, VlacQueueError):
                run.steps.append(step_of(run))
                run.open[run.last] = sent
        for run, failure in failed:
            if isinstance(failure, _MISTAKES):
                raise failure
            self._end(run, step_of(run) if step_of is not None else run.last, failure)
        return [run for run, sent in outcomes if not isinstance(sent, VlacQueueError)]

    def _take_in(self) -> None:
        """Take in the answers that are here; one look at Redis for all."""
        waiting = [pending for run in self._runs if not run.over for pending in run.open.values()]
        if waiting:
            try:
                self._client.poll(waiting)
            except _MISTAKES:
                raise
            except VlacQueueError:
                # What can't be read now is read at the next look, or by settle(), which has a deadline.
                if self.on_failure == "raise":
                    raise
        for run in self._runs:
            self._sort(run, None)
        self._ask_audit()

    def _ask_audit(self) -> None:
        self._audit.ask({run.episode.id: run.found_done for run in self._runs if run.found_done is not None})

    def _wait(self, runs: Sequence[_Run]) -> None:
        """Wait until each of `runs` is known to be over, or not done so far."""
        while True:
            for run in runs:
                self._sort(run, None)
            needed = [(run, run.open[step]) for run in runs if (step := run.first_open) is not None]
            if not needed:
                return
            try:
                self._client.wait([pending for _, pending in needed])
            except _MISTAKES:
                raise
            except VlacQueueError as error:
                for run, pending in needed:
                    if not pending.answered:
                        self._sort(run, error)

    def _sort(self, run: _Run, error: VlacQueueError | None) -> None:
        """Move answers that are here from open queries to answers; an `error` fails the first open query."""
        for step, pending in sorted(run.open.items()):
            if not pending.answered and error is None:
                continue
            answer: bool | VlacQueueError
            try:
                verdict = pending.verdict()
                answer, run.score = verdict.done, verdict.score
            except VlacQueueError as failure:
                # "No answer yet" is CriticTimeout too: the error at hand says more.
                answer = error if error is not None and isinstance(failure, CriticTimeout) else failure
                error = None
                if self._asked_again(run, step):
                    continue
            run.answers[step] = answer
            run.answer_s[step] = pending.answer_s
            del run.open[step]
            if answer is True:
                run.dones[step] = pending
        decisive = run.decisive
        failure_or_done = run.answers.get(decisive) if decisive is not None else None
        if isinstance(failure_or_done, VlacQueueError) and self.on_failure != "mask":
            raise failure_or_done
        if decisive is not None:
            run.found_done = run.dones.get(decisive)

    def _asked_again(self, run: _Run, step: int) -> bool:
        if self.on_failure != "retry" or run.tries.get(step, 0) >= self.retries:
            return False
        run.tries[step] = run.tries.get(step, 0) + 1
        (run.open[step],) = self._client.ask_again([run.open[step]])
        return True

    def _await_values(self, runs: Sequence[_Run]) -> None:
        """Ask for the values of `runs` and wait for them, again where they fail and that is to be retried."""
        failed: list[tuple[_Run, VlacQueueError]] = []
        for _ in range(1 + (self.retries if self.on_failure == "retry" else 0)):
            failed = self._try_values(runs)
            if not (runs := [run for run, _ in failed]):
                break
        for run, error in failed:
            self._end(run, run.last, error)

    def _try_values(self, runs: Sequence[_Run]) -> list[tuple[_Run, VlacQueueError]]:
        """Ask for the values of `runs`, and wait; return why some could not be had."""
        pendings: list[Pending[ValueVerdict]] = []
        late: VlacQueueError | None = None
        try:
            pendings = self._client.ask_value_many([run.episode for run in runs])
            self._client.wait(pendings)
        except _MISTAKES:
            raise
        except VlacQueueError as error:
            late = error
        failed = []
        for run, pending in zip_longest(runs, pendings):
            if late is not None and not (pending and pending.answered):
                failed.append((run, late))
                continue
            try:
                run.value = pending.verdict()
                run.value_s = pending.answer_s
            except VlacQueueError as error:
                failed.append((run, error))
        return failed

    def _end(self, run: _Run, step: int, error: VlacQueueError) -> None:
        """Mask an episode that failed outside its steps, or raise why."""
        if self.on_failure != "mask":
            raise error
        run.failure = step, error


class _Run(Course):
    """An episode as the gate goes on with it.

    Attributes:
        open: step -> the answer to come.
        tries: step -> how often it was asked again.
        score: of the last answer that came; NaN before.
        answer_s, value_s: seconds that the answers took: of each step, and of the value.
        told: its outcome, once that was told.
        dones: step -> the query that was answered with done.
        found_done: the one of these that ended it, once that is known.
    """

    def __init__(self, episode: Episode, done_confirm: int) -> None:
        super().__init__(done_confirm)
        self.episode = episode
        self.open: dict[int, Pending[Any]] = {}
        self.tries: dict[int, int] = {}
        self.score = math.nan
        self.answer_s: dict[int, float] = {}
        self.value_s = 0.0
        self.told: Outcome | None = None
        self.dones: dict[int, Pending[DoneVerdict]] = {}
        self.found_done: Pending[DoneVerdict] | None = None

    @property
    def last(self) -> int:
        """The last step observed; 0 before the first."""
        return self.steps[-1] if self.steps else 0

    @property
    def over(self) -> bool:
        """Whether it is known to end, or has been ended."""
        return self.told is not None or super().over
