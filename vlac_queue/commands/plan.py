"""`vlac-queue plan`: reckon how many GPUs and what of Redis a training needs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from vlac_queue.console import errors_as_messages, plain_table
from vlac_queue.costs import COSTS, Costs, read_costs
from vlac_queue.texts import size

#: Images in a call of the model on average, as the overlap benchmark's have them.
CALL_IMAGES = 32
#: Part of the time that a worker whose queue is never empty keeps its GPU busy.
BUSY = 0.95
#: Redis' CPU seconds for a query, and for a byte of a frame, in and out; from the figures in docs/performance.md.
REDIS_QUERY_S, REDIS_BYTE_S = 0.1e-3, 5.2e-9
#: Part of a core that one Redis should take: it has one thread for commands.
REDIS_CORE = 0.8
#: What Redis' `maxmemory` should be over the frames of the open episodes.
REDIS_ROOM = 1.25


@dataclass(frozen=True)
class Training:
    """What a training asks.

    Attributes:
        episodes: at a time, of all ranks.
        chunk_s: seconds of an action chunk, policy and simulators, without a critic.
        chunks: of an episode.
        frames: pushed a chunk.
        width, height: of a frame, in pixels.
        compression: bytes of a frame over its bytes encoded.
        reference_frames: shown with each pair; 0: none.
        done_stride: chunks from a done query to the next.
        value_stride: frames from an image of a value list to the next.
    """

    episodes: int
    chunk_s: float
    chunks: int
    frames: int
    width: int
    height: int
    compression: float
    reference_frames: int
    done_stride: int
    value_stride: int


@dataclass(frozen=True)
class Plan:
    """What it needs.

    Attributes:
        done_queries, pairs: of an episode.
        vision, language: images of all episodes that go through the vision tower and the language model.
        images_per_s: of `language`, while the episodes run.
        gpu_s: GPU seconds of all episodes.
        rollout_s: seconds of a rollout without a critic.
        workers: GPUs for the slowdown that was asked for.
        slowdown: seconds of a rollout with them over `rollout_s`; the wait for the last answers comes on top.
        frame_bytes: of a frame on Redis.
        redis_bytes: Redis' `maxmemory`.
        network_bytes_per_s: into Redis, and the same again out of it.
        queries_per_s: done queries.
        redis_cores: busy part of the core that Redis' one thread runs on, were there one Redis.
        queues: queues, each with a Redis of its own, that the episodes should be spread over.
    """

    done_queries: int
    pairs: int
    vision: int
    language: int
    images_per_s: float
    gpu_s: float
    rollout_s: float
    workers: int
    slowdown: float
    frame_bytes: float
    redis_bytes: float
    network_bytes_per_s: float
    queries_per_s: float
    redis_cores: float
    queues: int


def make_plan(training: Training, costs: Costs, slowdown: float) -> Plan:
    """Reckon what a training needs if nothing is done before its last chunk, the most that it can ask.

    Args:
        slowdown: most that a rollout may take, over one without a critic.
    """
    done_queries, pairs, vision, language = _images(training, costs)
    gpu_s = vision * costs.vision_s + language * (costs.language_s + costs.call_s / CALL_IMAGES)
    rollout_s = training.chunks * training.chunk_s
    workers = math.ceil(gpu_s / (rollout_s * slowdown * BUSY))
    frame_bytes = 3 * training.width * training.height / training.compression
    bytes_per_s = training.episodes * training.frames * frame_bytes / training.chunk_s
    queries_per_s = training.episodes / (training.chunk_s * training.done_stride)
    redis_cores = queries_per_s * REDIS_QUERY_S + bytes_per_s * REDIS_BYTE_S
    return Plan(
        done_queries=done_queries,
        pairs=pairs,
        vision=vision,
        language=language,
        images_per_s=language / rollout_s,
        gpu_s=gpu_s,
        rollout_s=rollout_s,
        workers=workers,
        slowdown=max(1.0, gpu_s / (rollout_s * workers * BUSY)),
        frame_bytes=frame_bytes,
        redis_bytes=training.episodes * (training.chunks * training.frames + 1) * frame_bytes * REDIS_ROOM,
        network_bytes_per_s=bytes_per_s,
        queries_per_s=queries_per_s,
        redis_cores=redis_cores,
        queues=math.ceil(redis_cores / REDIS_CORE),
    )


def _images(training: Training, costs: Costs) -> tuple[int, int, int, int]:
    """Return done queries and pairs of an episode, and images of all through vision and through language."""
    last = training.chunks * training.frames  # index of the last frame; frame 0 comes before the first chunk
    asked = range(training.done_stride, training.chunks + 1, training.done_stride)
    done_frames = {chunk * training.frames for chunk in asked}
    value_frames = {*range(0, last, training.value_stride), last}
    pairs = len(value_frames) - 1
    language = training.episodes * (len(done_frames) + 2 * pairs)
    if training.reference_frames:
        # VLAC shows the episode's first frame behind the reference frames, which all episodes share.
        # On torch calls of several episodes share only these.
        firsts = 1 if costs.keeps_prefixes else pairs
        language += training.episodes * firsts + training.reference_frames
    vision = training.episodes * len(done_frames | value_frames) + training.reference_frames
    return len(done_frames), pairs, vision, language


class _Size(click.ParamType):
    name = "WIDTHxHEIGHT"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        width, _, height = value.partition("x")
        if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
            self.fail(f"{value!r} is no size such as 256x256", param, ctx)
        return int(width), int(height)


_POSITIVE = click.FloatRange(0, min_open=True)


@click.command(short_help="Reckon what a training needs.")
@click.option("--episodes", default=64, show_default=True, type=click.IntRange(1), help="At a time, of all ranks.")
@click.option("--chunk-s", default=0.35, show_default=True, type=_POSITIVE, help="Seconds of an action chunk.")
@click.option("--chunks", default=64, show_default=True, type=click.IntRange(1), help="Of an episode.")
@click.option("--frames", default=1, show_default=True, type=click.IntRange(1), help="Pushed a chunk.")
@click.option("--frame-size", default="256x256", show_default=True, type=_Size(), help="In pixels.")
@click.option(
    "--compression",
    default=10.0,
    show_default=True,
    type=_POSITIVE,
    help="A frame's bytes over its bytes encoded: 10 with a simulator's fixed camera, 1.4 with a real one.",
)
@click.option("--reference-frames", default=0, show_default=True, type=click.IntRange(0), help="With a pair.")
@click.option(
    "--done-stride", default=1, show_default=True, type=click.IntRange(1), help="Chunks between done queries."
)
@click.option(
    "--value-stride", default=1, show_default=True, type=click.IntRange(1), help="Frames between values."
)
@click.option("--engine", default="pt", show_default=True, type=click.Choice(list(COSTS)), help="torch, or vLLM.")
@click.option(
    "--image-ms",
    type=_POSITIVE,
    help=f"Milliseconds of GPU time for an image, vision and language.  [default: "
    f"{1000 * (COSTS['pt'].vision_s + COSTS['pt'].language_s):g}, {COSTS['pt'].source}]",
)
@click.option(
    "--costs",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Figures of your GPU: a file of `python -m benchmarks.gpu --json`.",
)
@click.option(
    "--slowdown",
    default=1.1,
    show_default=True,
    type=click.FloatRange(1),
    help="Most that a rollout may take, over one without a critic.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    frame_size: tuple[int, int],
    engine: str,
    image_ms: float | None,
    file: Path | None,
    slowdown: float,
    as_json: bool,
    **asks: int | float,
) -> None:
    """Reckon how many GPUs and what of Redis a training needs, and show the reckoning.

    It looks at no GPU and no Redis.
    """
    with errors_as_messages():
        costs = read_costs(file, engine) if file else COSTS[engine]
    if image_ms:
        share = image_ms / 1000 / (costs.vision_s + costs.language_s)
        costs = replace(
            costs, vision_s=share * costs.vision_s, language_s=share * costs.language_s, source="--image-ms"
        )
    training = Training(width=frame_size[0], height=frame_size[1], **asks)  # type: ignore[arg-type]
    made = make_plan(training, costs, slowdown)
    if as_json:
        figures = {"training": asdict(training), "costs": asdict(costs), "plan": asdict(made)}
        click.echo(json.dumps(figures, indent=2))
    else:
        _show(training, costs, made, slowdown)


def _show(training: Training, costs: Costs, made: Plan, slowdown: float) -> None:
    table = plain_table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold", ratio=1)
    for row in (*_gpu_rows(training, costs, made, slowdown), *_redis_rows(training, made)):
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def _gpu_rows(training: Training, costs: Costs, made: Plan, slowdown: float) -> list[tuple[str, str, str]]:
    """Return names, figures and their reckoning."""
    references = ""
    if training.reference_frames:
        firsts = "once" if costs.keeps_prefixes else "with each"
        references = f"; {training.reference_frames} reference frames once, the episode's first frame {firsts}"
    vision, language, call = (1000 * seconds for seconds in (costs.vision_s, costs.language_s, costs.call_s))
    length = f"{training.chunks} x {training.chunk_s:g} s = {made.rollout_s:.1f} s"
    return [
        ("done queries", f"{made.done_queries:,} an episode", "of an image each"),
        ("pairs", f"{made.pairs:,} an episode", f"of two images each{references}"),
        ("images", f"{made.images_per_s:,.0f}/s", f"{made.language:,} in {length}"),
        (
            "GPU time",
            f"{made.gpu_s:.1f} s",
            f"{made.vision:,} frames x {vision:.2f} ms of vision + {made.language:,} images x ({language:.2f} ms "
            f"of language + {call:.0f} ms a call / {CALL_IMAGES} images); {costs.source}",
        ),
        (
            "GPU workers",
            f"{made.workers:,}",
            f"{made.gpu_s:.1f} s / ({made.rollout_s:.1f} s x slowdown {slowdown:g} x {BUSY:g} busy), rounded up",
        ),
        ("slowdown", f"{made.slowdown:.2f}", "with that many; the wait for the last answers comes on top"),
    ]


def _redis_rows(training: Training, made: Plan) -> list[tuple[str, str, str]]:
    """Return names, figures and their reckoning."""
    episodes = f"{training.episodes:,} episodes"
    frames, frame = training.chunks * training.frames + 1, size(made.frame_bytes)
    queries, rate = f"{made.queries_per_s:,.0f}/s", f"{size(made.network_bytes_per_s)}/s"
    pixels = f"{training.width} x {training.height} x 3 B"
    enough = "one Redis is enough" if made.queues == 1 else "spread the episodes over them, a Redis each"
    return [
        ("a frame on Redis", frame, f"{pixels} / {training.compression:g}"),
        ("Redis' maxmemory", size(made.redis_bytes), f"{episodes} x {frames:,} frames x {frame} x {REDIS_ROOM:g}"),
        ("Redis' network", f"{rate} in", "and the same out: a worker reads each frame once"),
        ("queries", queries, f"{episodes} / ({training.chunk_s:g} s x {training.done_stride})"),
        (
            "Redis' CPU",
            f"{made.redis_cores:.2f} cores",
            f"{queries} x {1000 * REDIS_QUERY_S:g} ms + {rate} x {1e9 * REDIS_BYTE_S:g} ns a byte",
        ),
        ("queues", f"{made.queues:,}", f"{enough}: it has one thread, of which {REDIS_CORE:g} may be busy"),
    ]
