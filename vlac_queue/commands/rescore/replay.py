"""Send the frames of a decision log through the queue once more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from vlac_queue.client import CriticClient, Episode, Pending
from vlac_queue.client.decision_log import pixel_hash
from vlac_queue.commands.asking import keep_open
from vlac_queue.commands.episodes.log import Note, read_batches, read_reference
from vlac_queue.commands.episodes.record import EpisodeRecord, decoded
from vlac_queue.config import VlacConfig
from vlac_queue.errors import CriticFailed, FrameError
from vlac_queue.messages import CriticIdentity, DoneVerdict, Kind, ValueVerdict
from vlac_queue.texts import many

Verdict = DoneVerdict | ValueVerdict


@dataclass(frozen=True)
class Replayed:
    """A verdict of a log, and what the critic says now."""

    task: str
    frame: int  # index of the one that was asked about
    then: Verdict
    now: Verdict | CriticFailed
    critic: CriticIdentity  # who answered now
    truth: bool | None  # whether the simulator calls the frame done; None where the log does not say


def verdicts(record: EpisodeRecord) -> dict[tuple[int, Kind], tuple[Verdict, str]]:
    """Return an episode's verdicts by frame and kind, the last of each, with the hash of the frame's pixels."""
    return {
        (query.frame, query.kind): (query.answer, query.sha256)
        for query in record.asked
        if isinstance(query.answer, DoneVerdict | ValueVerdict) and query.frame is not None
    }


def replay(
    config: VlacConfig,
    folder: Path,
    records: Iterable[EpisodeRecord],
    *,
    note: Note,
    refuse: Callable[[str], object],
) -> Iterator[Replayed]:
    """Ask about the frames of logged episodes as their clients did: same batches, threshold and stride.

    Args:
        config: which queue; its threshold and stride do not count.
        note: called with what is left out because the log ends there.
        refuse: called with what is not sent because it is not what the log's hashes say, or gone.
    """
    with ExitStack() as stack:
        for question in keep_open(_questions(stack, config, folder, records, note, refuse)):
            if isinstance(question, Episode):
                question.close()
            else:
                yield _replayed(*question)


def _questions(
    stack: ExitStack,
    config: VlacConfig,
    folder: Path,
    records: Iterable[EpisodeRecord],
    note: Note,
    refuse: Callable[[str], object],
) -> Iterator[tuple[EpisodeRecord, Verdict, Pending[Any]] | Episode]:
    """Ask, and yield each question; behind an episode's last one the episode, which is to be closed then."""

    @cache
    def client(done_threshold: float, value_stride: int) -> CriticClient:
        asking = replace(config, done_threshold=done_threshold, value_stride=value_stride, decision_log="")
        return stack.enter_context(CriticClient(asking))

    @lru_cache(maxsize=16)
    def reference(reference_id: str) -> Any:
        return read_reference(folder, reference_id, note) if reference_id else None

    for record in filter(verdicts, records):
        try:
            frames = reference(record.reference)
        except FrameError as error:
            refuse(f"episode {record.id!r}: {error}")
            continue
        episode = client(record.done_threshold, record.value_stride).episode(record.task, frames)
        for then, pending in _ask(record, episode, note, refuse):
            yield record, then, pending
        yield episode


def _ask(
    record: EpisodeRecord, episode: Episode, note: Note, refuse: Callable[[str], object]
) -> Iterator[tuple[Verdict, Pending[Any]]]:
    """Push an episode's frames again and ask what was asked then."""
    left = verdicts(record)
    last = max(frame for frame, _ in left)
    try:
        for first, batch in decoded(read_batches(record, note)):
            frame = first + len(batch) - 1
            asked = {kind: left.pop((frame, kind)) for kind in ("done", "value") if (frame, kind) in left}
            if {digest for _, digest in asked.values()} - {pixel_hash(batch[-1])}:
                refuse(
                    f"episode {record.id!r}, frame {frame}: its pixels do not have the hash in the log; it and "
                    "what follows in the episode were left out"
                )
                return
            if "done" in asked:
                yield asked["done"][0], episode.observe(batch)
            else:
                episode.push(batch)
            if "value" in asked:
                yield asked["value"][0], episode.ask_value()
            if frame >= last:
                break
    except FrameError as error:
        refuse(f"episode {record.id!r}: {error}")
        return
    if left:
        note(f"episode {record.id!r}: the frames of {many(len(left), 'verdict')} were not logged")


def _replayed(record: EpisodeRecord, then: Verdict, pending: Pending[Any]) -> Replayed:
    now: Verdict | CriticFailed
    try:
        now = pending.result()
    except CriticFailed as error:
        now = error
    frame = pending.query.frame
    truth = None if not record.truth_known else record.truth is not None and frame >= record.truth
    return Replayed(record.task, frame, then, now, pending.critic, truth)
