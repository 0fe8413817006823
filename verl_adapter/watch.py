"""One training minibatch of upstream's rollout loop, as the critic goes along with it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from verl_adapter.environments import Chunk, EnvironmentFailed
from vlac_queue import CriticClient, RolloutGate
from vlac_queue.errors import ProtocolError


@dataclass(frozen=True)
class Ending:
    """How one episode ended, as the batch carries it.

    Attributes:
        finish_step: environment steps that count, at least 1; what comes after is masked by upstream.
        reward: 1.0 if the critic found it done, else its value, 0..1; NaN exactly if masked.
        done: whether the critic found it done.
        masked: whether critic or simulator failed, so that it has no reward.
        success_step: environment step of the first true success up to finish_step, or None. Audit only.
        queries: how often the critic was asked about it.
        sent_bytes: bytes of encoded frames sent to Redis.
        waited_s: its share of the seconds that the minibatch waited for the critic.
        saved_s: its share of the seconds that the minibatch would have waited more without overlap.
        contradicted: whether the critic's value contradicts its done; None where that is not known.
    """

    finish_step: int
    reward: float
    done: bool
    masked: bool
    success_step: int | None
    queries: int
    sent_bytes: int
    waited_s: float
    saved_s: float
    contradicted: bool | None = None


class RolloutWatch:
    """Gathers what environments show, hands it to the training rule, and says which episodes are over.

        with RolloutWatch(client) as watch:
            watch.see(chunk)                      # for each environment, in the batch's order
            watch.advance(tasks)                  # before each policy step, and after the last
            stop = watch.over()                   # after each policy step
            endings = watch.settle()

    With `overlap`, encoding and sending go on in a thread while the policy's step does; nothing of it is left to
    wait for but errors, which `over` and `settle` raise.

    Args:
        client: asks the critic, by its own configuration.
    """

    def __init__(self, client: CriticClient) -> None:
        self._client = client
        # Of this minibatch alone: no thread is there when the next one forks its simulators.
        self._sender = ThreadPoolExecutor(1, "vlac-sender") if client.config.overlap else None
        self._sending: Future[None] | None = None
        self._waited_before = client.stats.waited_s
        self._gate: RolloutGate | None = None
        self._index: dict[str, int] = {}
        self._last: list[Chunk] = []
        self._news: dict[int, Chunk] = {}
        # For the decision log: the first frame sent of each episode that the simulator calls done.
        self._true_frames: dict[int, int] = {}

    def see(self, chunk: Chunk) -> None:
        """Take what an environment showed. Episodes are numbered by when they are first seen.

        What is shown again after the end (same step) is passed over.
        """
        index = self._index.setdefault(chunk.episode, len(self._index))
        if index == len(self._last):
            self._last.append(chunk)
        elif chunk.step <= self._last[index].step:
            return
        self._last[index] = chunk
        self._news[index] = chunk

    def advance(self, tasks: Sequence[str]) -> None:
        """Send what was seen since the last call, and asks whether it shows the task done.

        Args:
            tasks: each episode's task in words, in the batch's order; the first call opens the episodes.

        Raises:
            VlacQueueError: critic, queue or simulator failed, and `on_failure` says to raise it.
        """
        news, self._news = self._news, {}
        if self._sender is None:
            self._send(tasks, news)
        else:
            self._wait_for_sender()
            self._sending = self._sender.submit(self._send, tasks, news)

    def over(self) -> frozenset[int]:
        """Return the indices of episodes known to be over, without waiting for the critic. Raises as `advance`."""
        self._wait_for_sender()
        return self._gate.finished() if self._gate else frozenset()

    def settle(self) -> list[Ending]:
        """Wait for what is out, and ask the values of what was never done. Raises as `advance`.

        Returns:
            One ending for each episode, in the batch's order.
        """
        self._wait_for_sender()
        if self._gate is None:
            raise ProtocolError("no step was taken; call advance() before settle().")
        outcomes = self._gate.settle()
        for index, episode in enumerate(self._gate.episodes):
            self._client.note_truth(episode, self._true_frames.get(index))
        waited_s = self._client.stats.waited_s - self._waited_before
        saved_s = max(self._gate.critic_s - waited_s, 0.0)
        endings = []
        for outcome, episode, last in zip(outcomes, self._gate.episodes, self._last, strict=True):
            success_step = last.success_step
            if success_step is not None and success_step > outcome.finish_step:
                # Simulated while a late done was on its way: did not happen, as far as the episode goes.
                success_step = None
            endings.append(
                Ending(
                    # Upstream divides by the number of steps that count.
                    finish_step=max(outcome.finish_step, 1),
                    reward=math.nan if outcome.reward is None else outcome.reward,
                    done=outcome.done,
                    masked=outcome.masked,
                    success_step=success_step,
                    queries=episode.queries,
                    sent_bytes=episode.sent_bytes,
                    waited_s=waited_s / len(outcomes),
                    saved_s=saved_s / len(outcomes),
                    contradicted=outcome.contradicted,
                )
            )
        return endings

    def close(self) -> None:
        """Close the episodes: their keys leave Redis."""
        if self._sender is not None:
            self._sender.shutdown()
        if self._gate is not None:
            self._gate.close()

    def __enter__(self) -> RolloutWatch:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _send(self, tasks: Sequence[str], news: dict[int, Chunk]) -> None:
        if self._gate is None:
            if len(tasks) != len(self._last):
                raise ProtocolError(f"{len(self._last)} environments were seen for {len(tasks)} tasks.")
            self._gate = RolloutGate(self._client, tasks)
            self._gate.push({index: chunk.frames for index, chunk in news.items()})
            return
        by_step: dict[int, dict[int, Chunk]] = defaultdict(dict)
        for index, chunk in news.items():
            by_step[chunk.step][index] = chunk
        for step, chunks in sorted(by_step.items()):
            self._gate.fail(step, {i: EnvironmentFailed(_failure(c)) for i, c in chunks.items() if c.error})
            before = [episode.frames for episode in self._gate.episodes]
            self._gate.observe(step, {i: c.frames for i, c in chunks.items() if not c.error})
            for index, chunk in chunks.items():
                sent = self._gate.episodes[index].frames
                if chunk.success_step is not None and sent > before[index]:
                    self._true_frames.setdefault(index, sent - 1)

    def _wait_for_sender(self) -> None:
        if self._sending is not None:
            sending, self._sending = self._sending, None
            sending.result()


def _failure(chunk: Chunk) -> str:
    return (
        f"the simulator failed at environment step {chunk.step}; mend it, or leave such episodes out with "
        f"vlac.on_failure=mask.\n\nIts traceback:\n{chunk.error}"
    )
