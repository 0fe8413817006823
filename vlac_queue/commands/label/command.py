"""`vlac-queue label`: send a dataset's frames through the queue, and write the critic's labels for LeRobot."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from vlac_queue.client import CriticClient
from vlac_queue.commands.asking import camera_option, reference_stride_option, stride_option, timeout_option
from vlac_queue.commands.datasets.opening import open_dataset
from vlac_queue.commands.datasets.recording import Dataset, Recording, chosen_episodes
from vlac_queue.commands.label.asking import Answers, ask_all
from vlac_queue.commands.label.labels import PROGRESS, How, Labels, labelled, open_labels, write_progress
from vlac_queue.commands.label.progress import Progress
from vlac_queue.commands.label.references import References
from vlac_queue.commands.label.sheet import COLUMNS, HEIGHT, write_sheet
from vlac_queue.commands.label.summary import HEADERS, LEGEND, Ranked, Summary, summarize
from vlac_queue.config import VlacConfig
from vlac_queue.console import errors_as_messages, note, print_table, queue_options, writing
from vlac_queue.errors import FrameError, VlacQueueError
from vlac_queue.files import replacing
from vlac_queue.frames import Frames
from vlac_queue.plot import evenly, figure_class, shrunk
from vlac_queue.texts import clean, duration, many, number

#: Episodes left out from the first on, without one that is not, until the work ends: nothing is right then.
_ALL_WRONG = 10


# Over 40 lines: its options, and the one path from them to the files.
@click.command(short_help="Label a dataset with the critic's progress.")
@click.argument("source", metavar="DATASET", type=click.Path(exists=True, path_type=Path))
@camera_option
@click.option("--task", help="What the robot should do in all episodes, instead of the dataset's tasks.")
@click.option(
    "--reference",
    "references",
    multiple=True,
    metavar="EPISODE|PATH",
    help="A successful run: an episode of the dataset, for those of its task, or a recording, for all others. "
    "May be given several times.  [default: VLAC_REFERENCE, or none]",
)
@reference_stride_option
@stride_option
@click.option("--episodes", "chosen", default="0-", help="Which ones, such as 0-9,12,40-.  [default: all]")
@queue_options
@timeout_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for labels and pictures.  [default: vlac-labels in the dataset's folder]",
)
@click.option(
    "--png/--no-png", default=True, show_default=True, help="Draw the best and worst (needs matplotlib)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON, alone to stdout.")
def label(
    source: Path,
    camera: str | None,
    task: str | None,
    references: tuple[str, ...],
    reference_stride: int,
    stride: int,
    chosen: str,
    redis_url: str,
    queue: str,
    timeout: float | None,
    out: Path | None,
    png: bool,
    as_json: bool,
) -> None:
    """Ask the critic about every frame of a dataset, and write a table that LeRobot reads.

    DATASET is a LeRobotDataset v3 folder, or a folder of videos, .npz, .npy and folders of pictures with a table
    episodes.csv (file, task, perhaps reference). Writes progress.parquet (index, episode_index, frame_index,
    progress_sparse, done_score, value, pair_score), labels.jsonl, summary.json and episodes.png. Once stopped,
    the same command goes on where it was. A worker must be listening.

    Exit code 1 if an episode was left out: it is damaged, or the critic failed on it.
    """
    with errors_as_messages():
        if png:
            figure_class()  # better missed now than after the work
        config = VlacConfig.from_env(redis_url=redis_url, queue=queue, timeout_s=timeout)
        wanted = chosen_episodes(chosen)
        dataset = open_dataset(source, camera=camera, task=task)
        folder = out or dataset.path / "vlac-labels"
        reference = References(dataset, references, reference_stride, config.reference)
        how = How(
            _name(dataset.path.resolve(), folder.resolve()), dataset.camera, task or "", stride,
            config.value_stride, config.done_threshold, reference.said,
        )  # fmt: skip
        with ExitStack() as stack:
            with writing(folder, "--out"):
                labels = stack.enter_context(open_labels(folder, how))
            done = _label(config, dataset, labels, reference.of, wanted)
            made = _write(dataset, labels, folder, done, png)
    _show(made, done, folder, as_json)
    if done.left_out:
        raise SystemExit(1)


def _name(dataset: Path, folder: Path) -> str:
    return os.path.relpath(dataset, folder) if folder.is_relative_to(dataset) else str(dataset)


@dataclass
class _Done:
    """What one call of the command did."""

    frames: int = 0  # sent
    episodes: int = 0  # labelled
    seconds: float = 0.0
    left_out: dict[str, str] = field(default_factory=dict)  # name of the episode -> why


def _label(
    config: VlacConfig,
    dataset: Dataset,
    labels: Labels,
    reference: Callable[[Recording], Frames | None],
    wanted: Callable[[int], bool],
) -> _Done:
    """Label what has no labels yet."""
    done = _Done()
    for reason in dataset.damage:
        _leave_out(done, dataset.path.name, reason)

    def missing() -> Iterator[Recording]:
        for recording in dataset.recordings():
            if wanted(recording.index) and not labels.has(recording):
                yield recording

    # Through all of it before anything is asked: whether there is something to do, and labels are of this dataset.
    chosen = [labels.has(recording) for recording in dataset.recordings() if wanted(recording.index)]
    total, before = len(chosen), sum(chosen)
    if not total:
        raise FrameError(f"none of these episodes: {dataset.path} has {many(dataset.episodes, 'episode')}.")
    if before:
        click.echo(f"{before:,} of {many(total, 'episode')} are labelled already", err=True)
    began = time.monotonic()
    with Progress(total, before) as progress, CriticClient(config) as client:

        def sent(count: int) -> None:
            done.frames += count
            progress.sent(count)

        for answers in ask_all(client, missing(), reference, labels.how.stride, sent):
            _take_in(answers, labels, done)
            progress.finished()
    done.seconds = time.monotonic() - began
    return done


def _take_in(answers: Answers, labels: Labels, done: _Done) -> None:
    if answers.error is None:
        with writing(labels.path, "--out"):
            labels.add(labelled(answers))
        done.episodes += 1
        return
    said = answers.error.args[0] if isinstance(answers.error, VlacQueueError) else str(answers.error)
    reason = _leave_out(done, answers.recording.name, str(said))
    if not len(labels) and len(done.left_out) >= _ALL_WRONG:
        raise FrameError(f"the first {_ALL_WRONG} episodes were all left out; the last one: {reason}")


def _leave_out(done: _Done, name: str, said: str) -> str:
    """Say that a part of the dataset is left out, and return why."""
    reason = clean(" ".join(said.split()), 400)
    done.left_out[name] = reason
    click.echo(f"left out: {clean(name)}: {reason}", err=True)
    return reason


def _write(dataset: Dataset, labels: Labels, folder: Path, done: _Done, png: bool) -> dict[str, Any]:
    """Write the table, the summary and the picture; return the summary with what was made of it."""
    summary, about = summarize(labels), folder / "summary.json"
    with writing(folder, "--out"):
        rows = write_progress(labels, folder / PROGRESS)
        written = [folder / PROGRESS]
        if png and (summary.best or summary.worst):
            written += _draw(dataset, labels, summary, folder / "episodes.png")
        document = {
            "dataset": str(dataset.path.resolve()),
            "camera": labels.how.camera,
            "critic": [labels.critic.name, labels.critic.model, labels.critic.prompt] if labels.critic else None,
            "stride": labels.how.stride,
            "done_threshold": labels.how.done_threshold,
            "rows": rows,
            "total": summary.total.as_dict(),
            "tasks": [task.as_dict() for task in summary.tasks],
            "best": [ranked.episode for ranked in summary.best],
            "worst": [ranked.episode for ranked in summary.worst],
            "left_out": done.left_out,
            "labelled_now": done.episodes,
            "frames_per_s": done.frames / done.seconds if done.frames else None,
        }
        text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
        with replacing(about) as partial:
            partial.write_text(text + "\n", "utf-8")
    return {"document": document, "summary": summary, "written": [*written, about]}


def _draw(dataset: Dataset, labels: Labels, summary: Summary, path: Path) -> list[Path]:
    """Draw the best and worst episodes, whose frames are read again."""
    wanted: dict[int, Ranked] = {ranked.episode: ranked for ranked in (*summary.best, *summary.worst)}
    read: dict[int, list[tuple[int, Frames]]] = {}
    for recording in dataset.recordings():
        if ranked := wanted.get(recording.index):
            places = set(evenly(len(ranked.score.frames), COLUMNS))
            try:
                numbered = enumerate(recording.clip(labels.how.stride).numbered)
                read[recording.index] = [(n, shrunk(frame, HEIGHT)) for at, (n, frame) in numbered if at in places]
            except FrameError as error:  # damaged since it was labelled
                note(f"the picture is without {recording.name}: {error}")
        if len(read) == len(wanted):
            break
    if not read:
        return []
    shown = [(ranked, read[ranked.episode]) for ranked in wanted.values() if ranked.episode in read]
    title = f"{many(summary.total.episodes, 'episode')}: the {len(summary.best)} with the highest VOC"
    if summary.worst:
        title += f", then the {len(summary.worst)} with the lowest"
    with replacing(path) as partial:
        write_sheet(shown, partial, title)
    return [path]


def _show(made: dict[str, Any], done: _Done, folder: Path, as_json: bool) -> None:
    summary: Summary = made["summary"]
    if as_json:
        click.echo(json.dumps(made["document"], indent=2, allow_nan=False))
    elif summary.tasks:
        print_table(HEADERS, summary.rows(), texts=1)
        click.echo(LEGEND)
    if done.episodes:
        rate = number(done.frames / done.seconds)
        click.echo(
            f"Labelled {many(done.episodes, 'episode')} in {duration(done.seconds)}, {rate} frames/s", err=True
        )
    if done.left_out:
        click.echo(f"Left out: {many(len(done.left_out), 'episode')} (see above)", err=True)
    click.echo(f"Written: {', '.join(map(str, made['written']))}", err=as_json)
