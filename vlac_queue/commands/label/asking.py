"""Ask the critic about the frames of many recordings, several of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vlac_queue.client import CriticClient, Episode, Pending
from vlac_queue.commands.asking import MAX_OPEN
from vlac_queue.commands.datasets.recording import Recording
from vlac_queue.commands.label.decoding import Decoder, Reading, decoder
from vlac_queue.errors import CriticFailed, EpisodeLost, FrameError, ProtocolError
from vlac_queue.frames import Frames
from vlac_queue.messages import UNNAMED, CriticIdentity, DoneVerdict, ValueVerdict

#: Episodes that are open at a time: enough for batches of several workers, little on Redis.
OPEN_EPISODES = 16
#: Seconds to wait for decoded frames until answers are looked for again.
_LOOK_S = 0.02
#: Errors of one episode. Any other ends the work, which goes on later where it stopped.
_OF_AN_EPISODE = (FrameError, CriticFailed, EpisodeLost, ImportError, OSError)


@dataclass(frozen=True)
class Answers:
    """What came of a recording: the critic's answers, or why it is left out.

    Attributes:
        length: how many frames the recording has; those that were read of one that is left out.
        verdicts: of each frame sent, in order.
        value: the value list; None where there is but one frame.
        critic: who answered.
        error: why it is left out; None where it is not.
    """

    recording: Recording
    length: int = 0
    verdicts: tuple[DoneVerdict, ...] = ()
    value: ValueVerdict | None = None
    critic: CriticIdentity = UNNAMED
    error: Exception | None = None


@dataclass
class _Run:
    """A recording on its way through the queue."""

    recording: Recording
    reading: Reading
    episode: Episode
    dones: list[Pending[DoneVerdict]] = field(default_factory=list)
    value: Pending[ValueVerdict] | None = None
    error: Exception | None = None
    last: int = -1  # number in the recording of the frame sent last
    first_open: int = 0  # all dones before this one are answered

    @property
    def pendings(self) -> list[Pending[Any]]:
        """Return the queries that have no answer yet."""
        while self.first_open < len(self.dones) and self.dones[self.first_open].answered:
            self.first_open += 1
        asked: list[Pending[Any]] = list(self.dones[self.first_open :])
        if self.value is not None:
            asked.append(self.value)
        return [pending for pending in asked if not pending.answered]

    @property
    def over(self) -> bool:
        """Whether nothing is to come any more."""
        if self.error is not None:
            return True
        asked_all = self.reading.ended and (self.value is not None or len(self.dones) == 1)
        return asked_all and not self.pendings

    def answers(self) -> Answers:
        """Return what came of it."""
        try:
            if self.error is not None:
                raise self.error
            verdicts = tuple(pending.verdict() for pending in self.dones)
            value = self.value.verdict() if self.value else None
            return Answers(self.recording, self.last + 1, verdicts, value, self.dones[-1].critic)
        except _OF_AN_EPISODE as error:
            return Answers(self.recording, self.last + 1, error=error)


def ask_all(
    client: CriticClient,
    recordings: Iterator[Recording],
    reference: Callable[[Recording], Frames | None],
    stride: int,
    on_frames: Callable[[int], object] = lambda count: None,
) -> Iterator[Answers]:
    """Ask about recordings: of every stride-th frame and the last whether it is done, and the values of all.

    OPEN_EPISODES recordings are decoded and asked about at a time, and MAX_OPEN queries each of the workers'
    batches; what is in memory does not depend on how long recordings are, or how many.

    Args:
        reference: gives the frames of a successful run, uint8 (T,H,W,3); None takes the configuration's.
        on_frames: called with how many frames were sent.

    Yields:
        Each recording's answers as they are complete, in about their order.

    Raises:
        VlacQueueError: Redis is away, no worker listens, or an answer is late.
    """
    with decoder(OPEN_EPISODES) as reading:
        labelling = _Labelling(client, reading, reference, stride)
        left = True
        while left or labelling.runs:
            while left and len(labelling.runs) < OPEN_EPISODES:
                recording = next(recordings, None)
                left = recording is not None
                if recording is not None and (refused := labelling.begin(recording)):
                    yield refused
            on_frames(labelling.send())
            labelling.ask_values()
            yield from labelling.finished()
            labelling.wait()


class _Labelling:
    """The recordings that are open, those opened first first."""

    def __init__(
        self,
        client: CriticClient,
        decoding: Decoder,
        reference: Callable[[Recording], Frames | None],
        stride: int,
    ) -> None:
        self._client = client
        self._decoding = decoding
        self._reference = reference
        self._stride = stride
        self.runs: list[_Run] = []

    def begin(self, recording: Recording) -> Answers | None:
        """Open an episode for a recording; return why it is left out, if it is."""
        try:
            episode = self._client.episode(recording.task, self._reference(recording))
        except (FrameError, ProtocolError, ImportError) as error:
            return Answers(recording, error=error)
        self.runs.append(_Run(recording, self._decoding.read(recording, self._stride), episode))
        return None

    def send(self) -> int:
        """Send a frame of each recording that has one decoded, in one round trip; return how many."""
        ready = [run for run in self._may_go_on() if run.reading.ready][: self._room()]
        pushes = []
        for run in ready:
            run.last, frame = run.reading.take()
            pushes.append((run.episode, frame))
        for run, asked in zip(ready, self._client.observe_each(pushes) if pushes else (), strict=True):
            if isinstance(asked, Pending):
                run.dones.append(asked)
            elif isinstance(asked, _OF_AN_EPISODE):
                run.error = asked
            else:
                raise asked
        return len(pushes)

    def _room(self) -> int:
        return max(0, MAX_OPEN - sum(len(run.pendings) for run in self.runs))

    def _may_go_on(self) -> list[_Run]:
        """Return the recordings that may send frames: where Redis holds many, the one opened first alone, so that
        it ends and its frames go."""
        sent = sum(run.episode.sent_bytes for run in self.runs)
        return self.runs[:1] if sent > self._client.config.max_pending_bytes // 2 else self.runs

    def ask_values(self) -> None:
        """Ask for the values of recordings whose frames were all sent."""
        ended = [run for run in self.runs if run.reading.ended and run.value is None and run.error is None]
        for run in ended:
            run.error = run.reading.error
        whole = [run for run in ended if run.error is None and len(run.dones) > 1]
        values = self._client.ask_value_many([run.episode for run in whole]) if whole else ()
        for run, value in zip(whole, values, strict=True):
            run.value = value

    def finished(self) -> list[Answers]:
        """Close the recordings about which all is answered, and return the answers."""
        over = [run for run in self.runs if run.over]
        self.runs = [run for run in self.runs if not run.over]
        for run in over:
            run.reading.give_up()
        answers = [run.answers() for run in over]
        self._client.close_many([run.episode for run in over])
        return answers

    def wait(self) -> None:
        """Wait until there is something to do: a frame to send, or room for its query."""
        pendings = [pending for run in self.runs for pending in run.pendings]
        running = [run for run in self._may_go_on() if not run.reading.ended]
        if pendings and (not running or len(pendings) >= MAX_OPEN):
            self._client.wait(pendings[:1])
            return
        changed = self._decoding.changed
        with changed:
            changed.wait_for(lambda: any(run.reading.ready or run.reading.ended for run in running), _LOOK_S)
        if pendings:
            self._client.poll(pendings)
