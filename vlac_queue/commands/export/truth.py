"""Episodes of a decision log whose end is known, and what that says of their frames."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from vlac_queue.commands.calibrate.judged import Truth, truth_of
from vlac_queue.commands.episodes.log import Note, read_batches, read_log
from vlac_queue.commands.episodes.record import EpisodeRecord, decoded
from vlac_queue.frames import Frames


@dataclass(frozen=True)
class Known:
    """An episode whose end is known."""

    record: EpisodeRecord
    truth: Truth

    def done(self, frame: int) -> bool | None:
        """Return whether the task is done in a frame; None where nobody knows (a success without its frame)."""
        if not self.truth.success:
            return False
        return None if self.truth.frame is None else frame >= self.truth.frame

    def false_dones(self, above: float | None = None) -> list[int]:
        """Return the frames that the critic found done, or scored above `above`, and that are not, ascending."""
        verdicts = self.record.done_verdicts.items()
        fooled = (frame for frame, each in verdicts if (each.done if above is None else each.score > above))
        return [frame for frame in fooled if self.done(frame) is False]

    def frames(self, wanted: Collection[int], note: Note) -> Iterator[tuple[int, Frames]]:
        """Yield some of the frames, uint8 (H,W,3), with their numbers.

        Raises:
            FrameError: they are damaged, or gone.
        """
        last = max(wanted, default=-1)
        for first, batch in decoded(read_batches(self.record, note)):
            for place, frame in enumerate(batch):
                if first + place in wanted:
                    yield first + place, frame
            if first + len(batch) > last:
                return


def known_episodes(folder: Path, note: Note) -> Iterator[Known]:
    """Yield the episodes of a log whose end is known; raises ProtocolError as `read_log`."""
    for record in read_log(folder, note):
        if (truth := truth_of(record)) is not None:
            yield Known(record, truth)
