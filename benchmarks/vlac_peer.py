"""`python -m benchmarks.vlac_peer`: what VLAC's answers cost, asked of VLAC's own code and of the critic.

The same done and value queries go to `GAC_model` on torch (`get_trajectory_done`, `get_trajectory_critic`, with
its own batch sizes) and to the critic `vlac` on each engine that is installed. Counted are CPU seconds, images
through the vision tower, tokens through the language model, and how many answers differ.

The model is shaped as InternVL2-2B, with random weights (benchmarks/tiny_vlac.py), in float32 on a CPU. Peers
have processes of their own and take turns, a question each.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import groupby, permutations
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.processes import machine
from benchmarks.vlac_asking import OWN, Cost, Question, ask, load, make_small
from vlac_queue.commands.demo.rollouts import load_rollouts
from vlac_queue.config import VlacConfig
from vlac_queue.console import progress_bar
from vlac_queue.errors import ConfigError
from vlac_queue.frames import Frames

_TASK = "open the drawer"
#: The critic's engines, with the package that each needs.
ENGINES = {"pt": "torch", "vllm": "vllm"}
_TITLES = {OWN: "GAC_model, torch", "pt": "vlac-queue, torch", "vllm": "vlac-queue, vLLM"}
#: What the critic on an engine must save of GAC_model's time.
GOALS = {("pt", "value"): 1.4, ("vllm", "value, 9 reference frames"): 8.0}
#: Orders of a frame's channels.
_CHANNELS = tuple(permutations(range(3)))
#: Three episodes of as many have no frame twice.
_MOST_FRAMES = 500


@dataclass(frozen=True)
class Row:
    """What one peer gave to one question.

    Attributes:
        over: what GAC_model's time is of its own: CPU seconds on a CPU, seconds on a GPU.
        differ: answers that are not GAC_model's.
    """

    question: str
    peer: str
    frames: int
    cost: Cost
    over: float
    differ: int


def installed() -> list[str]:
    """Return the engines whose package is there."""
    return [engine for engine, package in ENGINES.items() if importlib.util.find_spec(package)]


def compare(config: VlacConfig, engines: Sequence[str], frames: int) -> list[Row]:
    """Load GAC_model and the critic on each engine, in processes of their own, and ask all of them the same.

    Args:
        config: of a worker; its engine doesn't count.
        frames: of an episode.

    Raises:
        ConfigError: something is missing.
    """
    asked = questions(frames)
    # Darker, so that no cache knows a frame.
    warm_up = [
        replace(
            question,
            frames=question.frames[:2] // 2,
            reference=None if question.reference is None else question.reference // 2,
        )
        for question in asked.values()
    ]
    with ExitStack() as stack, progress_bar() as progress:
        peers = {
            peer: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for peer in (OWN, *engines)
        }
        for peer, process in progress.track(list(peers.items()), description="loading"):
            process.submit(load, peer, _settings(config, peer), warm_up).result()
        rows = measure(peers, asked, on_gpu=config.device != "cpu")
        return list(progress.track(rows, total=len(asked) * len(peers), description="questions"))


def _settings(config: VlacConfig, peer: str) -> VlacConfig:
    if peer == OWN:
        return config
    if peer == "vllm" and config.device == "cpu":
        # A cache of keys and values of 2,048 blocks of 32 tokens.
        arguments = json.dumps({"num_gpu_blocks_override": 2048, "enforce_eager": True})
        return replace(config, engine=peer, engine_args=arguments)
    return replace(config, engine=peer)


def questions(count: int) -> dict[str, Question]:
    """Return what is asked, by name, about episodes of `count` frames.

    The second and the last are about the frames of the first, as a rollout asks, and the last shows reference
    frames that an episode before has shown; the others are about frames not seen before.
    """
    recorded = np.concatenate([rollout.frames for rollout in load_rollouts("expert")])
    frames = [_recoloured(recorded, index) for index in range(3 * count)]
    episodes = [np.stack(frames[start : start + count]) for start in range(0, 3 * count, count)]
    reference = load_rollouts("reference")[-1].frames
    return {
        "done": Question("done", _TASK, episodes[0]),
        "value after done": Question("value", _TASK, episodes[0]),
        "value": Question("value", _TASK, episodes[1]),
        "value, 9 reference frames": Question("value", _TASK, episodes[2], reference),
        "value after done, 9 reference frames": Question("value", _TASK, episodes[0], reference),
    }


def _recoloured(recorded: Frames, index: int) -> Frames:
    """Return one of the recorded frames in other colours: far from the one before, so that answers differ."""
    frame = recorded[7 * index % len(recorded)][..., _CHANNELS[index % len(_CHANNELS)]]
    return 255 - frame if index // len(_CHANNELS) % 2 else frame


def measure(peers: Mapping[str, Executor], asked: Mapping[str, Question], on_gpu: bool) -> Iterator[Row]:
    """Ask every peer every question, in turns; all of them are loaded, GAC_model among them and the first.

    Yields:
        A row for each question and peer.
    """
    for name, question in asked.items():
        own = None
        for peer, process in peers.items():
            cost = process.submit(ask, question).result()
            own = own or cost
            over = own.wall_s / cost.wall_s if on_gpu else own.cpu_s / cost.cpu_s
            differ = sum(ours != theirs for ours, theirs in zip(cost.answers, own.answers, strict=True))
            yield Row(name, peer, len(question.frames), cost, over, differ)


def tables(rows: Sequence[Row]) -> list[Table]:
    """Return what each peer's answers cost, a table for each question."""
    return [
        report.table(
            f"{question[0].upper()}{question[1:]}, {asked[0].frames} frames",
            ("", "CPU s", "s", "GAC_model's over it", "vision a frame", "tokens a frame", "differ"),
            [
                [
                    _TITLES[row.peer],
                    f"{row.cost.cpu_s:.1f}",
                    f"{row.cost.wall_s:.1f}",
                    f"{row.over:.2f}",
                    f"{row.cost.vision / row.frames:.2f}",
                    f"{row.cost.tokens / row.frames:,.0f}",
                    f"{row.differ} of {len(row.cost.answers)}",
                ]
                for row in asked
            ],
        )
        for question, found in groupby(rows, key=lambda row: row.question)
        for asked in [list(found)]
    ]


def verdict(rows: Sequence[Row]) -> list[str]:
    """Return sentences on what the figures say."""
    lines: list[str] = []
    if not rows:
        return lines
    for row in rows:
        if goal := GOALS.get((row.peer, row.question)):
            said = "reached" if row.over >= goal else "MISSED"
            title = _TITLES[row.peer]
            lines.append(
                f"{row.question}: GAC_model takes {row.over:.2f} times as long as {title}; {said}: {goal}."
            )
    for peer in dict.fromkeys(row.peer for row in rows):
        seen = [row for row in rows if row.peer == peer and row.question in ("done", "value after done")]
        passes = sum(row.cost.vision for row in seen) / max(row.frames for row in seen)
        lines.append(f"done and value, {_TITLES[peer]}: {passes:.2f} passes through vision a frame.")
    differ = sum(row.differ for row in rows)
    lines.append("All answers agree." if not differ else f"{differ} answers DIFFER from GAC_model's.")
    return lines


@click.command()
@click.option(
    "--frames", type=click.IntRange(2, _MOST_FRAMES), default=17, show_default=True, help="Frames of an episode."
)
@click.option("--layers", default=4, show_default=True, help="Layers of each of the model's two parts.")
@click.option("--width", default=512, show_default=True, help="Width of the language model.")
@click.option(
    "--engine",
    "engines",
    type=click.Choice(list(ENGINES)),
    multiple=True,
    default=installed,
    help="The critic's engines.  [default: those that are installed]",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write the figures to this file too.")
def main(frames: int, layers: int, width: int, engines: Sequence[str], json_file: str | None) -> None:
    """Measures what VLAC's answers cost, in VLAC's own code and in the critic."""
    with tempfile.TemporaryDirectory(prefix="vlac-peer-") as folder:
        try:
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                process.submit(make_small, Path(folder), layers, width).result()
            rows = compare(VlacConfig(model_path=folder, device="cpu", dtype="float32"), engines, frames)
        except ConfigError as error:
            raise click.ClickException(str(error)) from None
    described = {"machine": machine(), "model": f"{layers} layers of width {width}, float32, random weights"}
    says = verdict(rows)
    console = Console()
    for table in tables(rows):
        console.print(table)
    for line in (*described.values(), *says):
        console.print(line, highlight=False)
    if json_file:
        text = json.dumps({**described, "says": says, "rows": [asdict(row) for row in rows]}, indent=2)
        Path(json_file).write_text(text + "\n")


if __name__ == "__main__":
    main()
