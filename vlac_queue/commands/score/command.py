"""`vlac-queue score`: a recorded run through the queue, and the critic's curves of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from vlac_queue.client import CriticClient, Episode, Pending
from vlac_queue.commands.asking import (
    camera_option,
    keep_open,
    reference_stride_option,
    stride_option,
    timeout_option,
)
from vlac_queue.commands.score.figures import Score, make_score, summary
from vlac_queue.commands.score.picture import Thumbnails, write_sheet
from vlac_queue.commands.score.reading import Clip
from vlac_queue.commands.score.source import find_reference, find_source
from vlac_queue.config import VlacConfig
from vlac_queue.console import errors_as_messages, progress_bar, queue_options, writing
from vlac_queue.frames import Frames
from vlac_queue.messages import DoneVerdict, ValueVerdict
from vlac_queue.plot import figure_class
from vlac_queue.texts import many


# Over 40 lines: its options, and the one path from them to the files.
@click.command(short_help="Draw the critic's curves of a recorded run.")
@click.argument("source", metavar="RECORDING|DATASET|NAME")
@click.option("--task", help="What the robot should do, in words; a recording alone needs it.")
@click.option("--episode", type=click.IntRange(min=0), help="Episode of a dataset, from 0.")
@camera_option
@click.option(
    "--reference",
    metavar="EPISODE|PATH",
    help="A successful run of the same task: an episode of the dataset, or a recording.  "
    "[default: VLAC_REFERENCE, or none]",
)
@stride_option
@reference_stride_option
@queue_options
@timeout_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for score.json and score.png.  [default: score-out; with --json, none]",
)
@click.option("--png/--no-png", default=True, show_default=True, help="Draw the picture (needs matplotlib).")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON alone to stdout.")
def score(
    source: str,
    task: str | None,
    episode: int | None,
    camera: str | None,
    reference: str | None,
    stride: int,
    reference_stride: int,
    redis_url: str,
    queue: str,
    timeout: float | None,
    out: Path | None,
    png: bool,
    as_json: bool,
) -> None:
    """Ask the critic about a recorded run: how far each frame is, and whether the task is done in it.

    Reads a video or a folder of png or jpg files (these need the extra video), an .npz with 'frames', an .npy,
    an episode of a LeRobot dataset (--episode; extra datasets), or a run that ships, by its name. Prints VOC
    (how well the values keep the order of time, -1..1) and the negative rate (the part of the steps that lead
    away from the goal, 0..1). The threshold and the distance of the value list's pairs are VLAC_DONE_THRESHOLD
    and VLAC_VALUE_STRIDE. A worker must be listening.
    """
    with errors_as_messages():
        config = VlacConfig.from_env(redis_url=redis_url, queue=queue, timeout_s=timeout)
        folder = out or (None if as_json else Path("score-out"))
        if png := png and folder is not None:
            figure_class()  # better missed now than after the work
        recording = find_source(source, episode=episode, camera=camera, task=task)
        clip = recording.clip(stride)
        reference_frames = find_reference(
            source, recording, reference, of_dataset=episode is not None, camera=camera, stride=reference_stride
        )
        if folder is not None:
            with writing(folder, "--out"):
                folder.mkdir(parents=True, exist_ok=True)
        thumbnails = Thumbnails()
        verdicts, value, length = _ask_clip(config, recording.task, reference_frames, clip, thumbnails)
        name = source if episode is None else f"{source}, episode {episode}"
        made = make_score(
            verdicts, value, source=name, task=recording.task, stride=stride, length=length,
            done_threshold=config.done_threshold, value_stride=config.value_stride,
        )  # fmt: skip
        click.echo(made.to_json() if as_json else summary(made))
        if folder is not None:
            written = _write(made, folder, thumbnails if png else None)
            click.echo(f"Written: {', '.join(map(str, written))}", err=as_json)


def _ask_clip(
    config: VlacConfig, task: str, reference: Frames | None, clip: Clip, thumbnails: Thumbnails
) -> tuple[list[DoneVerdict], ValueVerdict | None, int]:
    """Ask about a clip; return the answers, and how many frames the recording has."""
    last = 0

    def frames() -> Iterator[Frames]:
        nonlocal last
        for last, frame in clip.askable:
            yield thumbnails.add(last, frame)

    with progress_bar() as bar, CriticClient(config) as client:
        answers = bar.add_task("asking the critic", total=clip.count and clip.count + 1)
        verdicts, value = ask(client, task, reference, frames(), lambda: bar.advance(answers))
    return verdicts, value, last + 1


def ask(
    client: CriticClient,
    task: str,
    reference: Frames | None,
    frames: Iterable[Frames],
    on_answer: Callable[[], object] = lambda: None,
) -> tuple[list[DoneVerdict], ValueVerdict | None]:
    """Ask of each frame whether the task is done, and for the value list over all of them.

    The frames go out while earlier answers come in. A value list comes of comparing frames: none is asked for
    where there is but one.

    Args:
        client: the queue.
        task: the task's text.
        reference: uint8 (T,H,W,3), a successful run; None takes the configuration's.
        frames: uint8 (H,W,3) each, at least one.
        on_answer: called after each answer: as often as there are frames, and once for the value list.

    Returns:
        A verdict for each frame, in order, and the value list, or None.

    Raises:
        VlacQueueError: as `Episode.push`, `Episode.ask_done` and `Pending.result`.
    """

    def questions(episode: Episode) -> Iterator[Pending[Any]]:
        for frame in frames:
            episode.push(frame)
            yield episode.ask_done()
        if episode.frames > 1:
            yield episode.ask_value()

    answers: list[Any] = []
    with client.episode(task, reference) as episode:
        for pending in keep_open(questions(episode), lambda pending: pending.done()):
            answers.append(pending.result())
            on_answer()
        value = answers.pop() if episode.frames > 1 else None
    return answers, value


def _write(made: Score, folder: Path, thumbnails: Thumbnails | None) -> list[Path]:
    """Write the JSON, and given thumbnails the picture; return what was written."""
    files = [folder / "score.json"]
    with writing(folder, "--out"):
        files[0].write_text(made.to_json() + "\n", encoding="utf-8")
        if thumbnails is not None:
            files.append(folder / "score.png")
            shown = thumbnails.chosen()
            note = many(len(made.frames), "frame") + (f", stride {made.stride}" if made.stride > 1 else "")
            write_sheet(made, shown, files[-1], name=Path(made.source).name, note=note)
    return files
