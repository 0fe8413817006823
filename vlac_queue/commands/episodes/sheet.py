"""Draw an episode: its frames with their done scores, the value curve and the done curve."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from vlac_queue.commands.episodes.record import EpisodeRecord, decoded, described
from vlac_queue.commands.score.figures import Score, make_score
from vlac_queue.commands.score.picture import COLUMNS, THUMBNAIL_HEIGHT, write_sheet
from vlac_queue.errors import FrameError
from vlac_queue.frames import Frames, read_batch
from vlac_queue.messages import ValueVerdict
from vlac_queue.plot import evenly, shrunk
from vlac_queue.texts import many

#: Rows of frames that still fit a screen; longer episodes are shown by evenly chosen frames.
_ROWS = 5


def write_episode(record: EpisodeRecord, batches: Callable[[], Iterable[bytes]], path: Path) -> tuple[int, int]:
    """Draw an episode as PNG.

    Args:
        record: what is known of it.
        batches: gives its encoded frame batches, from the first on; called twice, and read one batch at a time.

    Returns:
        How many frames are shown, and of how many.

    Raises:
        FrameError: the episode has no frames, or they are damaged.
        ImportError: matplotlib is missing.
    """
    count = sum(read_batch(payload).shape[0] for payload in batches())
    if count == 0:
        raise FrameError(f"episode {record.id!r} has no frames yet.")
    ended = count - 1 if record.first_done is None and record.value is not None else None
    decisive = [] if record.first_done is None or record.first_done >= count else [record.first_done]
    wanted = set(evenly(count, _ROWS * COLUMNS, decisive))
    shown: list[tuple[int, Frames]] = []
    for first, batch in decoded(batches()):
        places = [place for place in range(len(batch)) if first + place in wanted]
        shown += [(first + place, shrunk(batch[place], THUMBNAIL_HEIGHT)) for place in places]
    # An open episode may have got more frames meanwhile; those chosen stay.
    of = "" if len(shown) == count else f"{len(shown)} of "
    write_sheet(
        _score(record, count - 1),
        shown,
        path,
        name=record.id,
        note=_note(record, f"{of}{many(count, 'frame')}"),
        ended=ended,
        truth=record.truth,
        failed={query.frame for query in record.failures if query.frame is not None},
    )
    return len(shown), count


def _score(record: EpisodeRecord, last: int) -> Score:
    """Return the curves of an episode of the frames 0..`last`."""
    lists = [asked.frame for asked in record.asked if isinstance(asked.answer, ValueVerdict)]
    if lists and lists[-1] is not None:
        last = lists[-1]
    return make_score(
        list(record.done_verdicts.values()),
        record.value,
        source=record.id,
        task=record.task,
        stride=1,
        done_threshold=record.done_threshold,
        value_stride=record.value_stride,
        last=last,
    )


def _note(record: EpisodeRecord, frames: str) -> str:
    critics = described(record.critics, 40)
    parts = [f"critic {critics}" if critics else "no answer yet", frames, many(len(record.asked), "query")]
    if record.pending:
        parts.append(f"{record.pending} on their way")
    if record.failures:
        parts.append(f"{len(record.failures)} failed")
    if record.truth_known:
        parts.append(
            "simulator: never done" if record.truth is None else f"simulator: done at frame {record.truth}"
        )
    return "  ·  ".join(parts)
