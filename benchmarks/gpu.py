"""`python -m benchmarks.gpu`: does the queue keep VLAC's engine busy? Images a second with it and without it.

For each batch size the same batches are answered twice: by `VlacCritic.answer`, called directly in a process that
does nothing else, and through Redis by a real `rq worker` whose queue is always full. The two take turns on the
GPU: while the worker runs, the direct process has its weights in host memory. A query asks whether a task is done
in one image of 256x256x3.

The model has the shape of InternVL2-2B and random weights (benchmarks/tiny_vlac.py --like-2b); it says nothing
about robots, and takes the time and memory of one that does. The other settings are a worker's own, from `VLAC_*`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import psutil
import redis
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.load import full_queue
from benchmarks.processes import machine, worker
from benchmarks.workloads import simulator
from vlac_queue.client import CriticClient, Pending, live_workers
from vlac_queue.config import VlacConfig
from vlac_queue.errors import ConfigError, CriticTimeout
from vlac_queue.keys import Keys
from vlac_queue.messages import DoneVerdict
from vlac_queue.server import RedisServer
from vlac_queue.texts import many
from workers.critics import CriticQuery
from workers.critics.vlac import VlacCritic
from workers.critics.vlac.installation import check_versions, installed_versions

#: What the queue must keep of the direct rate.
TARGET = 0.95
#: Largest batch.
_MOST = 64
_TASK = "open the drawer"
#: Batches asked and not answered: one at the critic, one waiting in the worker, the others on the queue.
_OPEN = 6
#: Least batches measured, however long they take.
_LEAST_BATCHES = 3
#: Seconds that a query may take; on a CPU they are slow.
_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Gpu:
    """The device: its name and its memory in bytes, 0 for a CPU."""

    name: str
    total_bytes: int


@dataclass(frozen=True)
class Direct:
    """The critic called directly.

    Attributes:
        peak_bytes: most that torch's allocator reserved on the GPU.
        max_images: most images of a call at the end: below VLAC_MAX_IMAGES where memory ran out.
    """

    images_per_s: float
    failed: int
    peak_bytes: int
    max_images: int


@dataclass(frozen=True)
class Queued:
    """The critic in a worker.

    Attributes:
        busy: part of the time that the critic worked, 0..1, from the first question to the last answer.
        mean_batch: queries in a batch.
        peak_bytes: what the worker's allocator holds on the GPU at the end, as the worker publishes it. It gives
            nothing back meanwhile, unless memory ran out.
    """

    images_per_s: float
    busy: float
    mean_batch: float
    failed: int
    peak_bytes: int


@dataclass(frozen=True)
class Row:
    """Both measurements at one batch size (queries, and so images, in a batch)."""

    batch: int
    direct: Direct
    queued: Queued

    @property
    def ratio(self) -> float:
        """What the queue keeps of the direct rate."""
        return self.queued.images_per_s / self.direct.images_per_s

    @property
    def failed(self) -> int:
        """Queries that failed, of both."""
        return self.direct.failed + self.queued.failed

    @property
    def peak_bytes(self) -> int:
        """Most GPU memory of either."""
        return max(self.direct.peak_bytes, self.queued.peak_bytes)


# In a process of its own, which alone imports torch: the direct measurement.

_critic: VlacCritic | None = None


def look(device: str) -> Gpu | None:
    """The device "cuda" (the first GPU) or "cpu"; None where torch sees no GPU."""
    import torch

    if device == "cpu":
        return Gpu("CPU", 0)
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return Gpu(properties.name, properties.total_memory)


def load(config: VlacConfig) -> None:
    """Loads the critic, and puts its weights into host memory."""
    global _critic
    _critic = VlacCritic(config)
    _critic.load()
    _critic.offload()


def measure_direct(batch: int, seconds: float) -> Direct:
    """Asks batch after batch for about `seconds` seconds, after two to warm up."""
    import torch

    assert _critic is not None and _critic._calls is not None
    _critic.wake()
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    failed, asked = 0, 0
    started = now = 0.0
    while asked < _LEAST_BATCHES + 2 or now - started < seconds:
        if asked == 2:
            started = time.monotonic()
        frames = simulator().step(asked, batch)
        answers = _critic.answer([CriticQuery("done", _TASK, frame[None], asked) for frame in frames])
        now = time.monotonic()
        failed += sum(not isinstance(answer, DoneVerdict) for answer in answers)
        asked += 1
    peak = torch.cuda.max_memory_reserved() if on_gpu else 0
    limit = _critic._calls.limit
    _critic.offload()
    return Direct((asked - 2) * batch / (now - started), failed, peak, limit)


# In this process: the queue.


def measure_queued(environ: Mapping[str, str], batch: int, seconds: float) -> Queued:
    """Keeps the queue of a new worker full for about `seconds` seconds, after some batches to warm up.

    Raises:
        ClickException: the worker ended; it has said why.
    """
    variables = {**environ, "VLAC_MAX_BATCH": str(batch)}
    with (
        RedisServer() as server,
        worker(server.url, "vlac", "workers.CriticWorker", variables) as process,
        CriticClient(VlacConfig(redis_url=server.url, max_batch=batch, timeout_s=_TIMEOUT_S)) as client,
        redis.Redis.from_url(server.url) as connection,
    ):
        _published(connection, process, queries=0)
        keep_full(client, process, batch, 0.0)  # warms up
        before = _published(connection, process, queries=client.stats.queries)
        answered, took = keep_full(client, process, batch, seconds)
        after = _published(connection, process, queries=client.stats.queries)
    change = {key: after[key] - before[key] for key in ("queries", "batches", "busy_s")}
    rate = (len(answered) - 1) * batch / (answered[-1] - answered[0])
    return Queued(
        images_per_s=rate,
        busy=change["busy_s"] / took,
        mean_batch=change["queries"] / change["batches"],
        failed=int(after["failures"]),
        peak_bytes=int(after["accelerator_bytes"]),
    )


def keep_full(
    client: CriticClient, process: psutil.Process, batch: int, seconds: float
) -> tuple[list[float], float]:
    """Asks so that `_OPEN` batches are always open, then waits for all of them.

    Returns:
        When each batch was answered while others waited, in seconds of the monotonic clock; and the seconds from
        the first question to the last answer.

    Raises:
        ClickException: the worker ended.
    """
    answered: list[float] = []
    started = time.monotonic()
    wait = partial(_wait, client, process)
    with closing(full_queue(client, batch=batch, open_batches=_OPEN, wait=wait)) as times:
        for now in times:
            answered.append(now)
            if len(answered) > _LEAST_BATCHES and now - answered[0] >= seconds:
                break
    return answered, time.monotonic() - started


def _wait(client: CriticClient, process: psutil.Process, question: Sequence[Pending[DoneVerdict]]) -> None:
    """Waits for the answers; they are not looked at, the worker counts its failures."""
    while True:
        try:
            return client.wait(question, timeout=5.0)
        except CriticTimeout:
            _check_alive(process)


def _published(connection: redis.Redis, process: psutil.Process, *, queries: int) -> dict[str, float]:
    """The worker's totals, once it has loaded and answered `queries` queries."""
    keys = Keys("vlac")
    while True:
        _check_alive(process)
        for name in live_workers(connection, keys):
            said: Any = connection.hgetall(keys.worker(name))
            if said and said[b"state"] != b"loading" and int(said[b"queries"]) == queries:
                totals = ("queries", "batches", "busy_s", "failures", "accelerator_bytes")
                return {key: float(said[key.encode()]) for key in totals}
        time.sleep(0.05)


def _check_alive(process: psutil.Process) -> None:
    if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
        raise click.ClickException("the worker ended; what it said is above.")


# The checkpoint.


def prepare(folder: Path, layers: int, width: int) -> Path:
    """The folder of the checkpoint, made where it is empty or not there.

    Raises:
        ClickException: it holds something else, or can't be made.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        size = ["--layers", str(layers), "--width", str(width)]
        # Its standard output, the folder's name, goes to standard error.
        made = subprocess.run(
            [sys.executable, "-m", "benchmarks.tiny_vlac", str(folder), "--like-2b", *size], stdout=2
        )
        if made.returncode:
            raise click.ClickException("the checkpoint could not be made; the reason is above.")
        return folder
    try:
        config = json.loads((folder / "config.json").read_text())
        sizes = config["llm_config"]["num_hidden_layers"], config["llm_config"]["hidden_size"]
    except (OSError, ValueError, KeyError, TypeError):
        raise click.ClickException(f"{folder} holds no checkpoint; remove it, or give another folder.") from None
    if config.get("model_type") == "tiny_vlac" and sizes != (layers, width):
        raise click.ClickException(
            f"{folder} holds a checkpoint of {sizes[0]} layers of width {sizes[1]}, and this run needs {layers} "
            f"of width {width}; remove it, or give another folder."
        )
    return folder


# The figures.


def table(rows: Sequence[Row], caption: str) -> Table:
    """Rates, busy fraction and memory for each batch size."""
    made = Table(title="VLAC answering done queries: called directly, and through the queue", caption=caption)
    columns = ("batch", "direct\nimages/s", "queue\nimages/s", "queue/\ndirect", "critic\nbusy")
    for column in (*columns, "direct\nGB", "worker\nGB", "failed"):
        made.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(
            str(row.batch),
            f"{row.direct.images_per_s:.1f}",
            f"{row.queued.images_per_s:.1f}",
            f"{row.ratio:.3f}",
            f"{row.queued.busy:.1%}",
            _gigabytes(row.direct.peak_bytes),
            _gigabytes(row.queued.peak_bytes),
            str(row.failed),
        )
    return made


def verdict(rows: Sequence[Row], allowed_bytes: float, max_images: int) -> list[str]:
    """Sentences on what the figures say. `allowed_bytes` is 0 without a GPU."""
    worst = min(rows, key=lambda row: row.ratio)
    said = "at least" if worst.ratio >= TARGET else "less than"
    lines = [f"The queue keeps {said} {TARGET} of the direct rate: {worst.ratio:.3f} at batch {worst.batch}."]
    if allowed_bytes:
        most = max(rows, key=lambda row: row.peak_bytes)
        side = "under" if most.peak_bytes <= allowed_bytes else "OVER"
        allowed = f"the {_gigabytes(allowed_bytes)} GB that VLAC_GPU_MEMORY_FRACTION allows"
        lines.append(f"GPU memory stays {side} {allowed}: {_gigabytes(most.peak_bytes)} GB at batch {most.batch}.")
    else:
        lines.append("This ran on a CPU: it shows that the script works, and nothing about a GPU.")
    for row in rows:
        if row.direct.max_images < max_images:
            lines.append(f"Batch {row.batch}: memory ran out, calls shrank to {row.direct.max_images} images.")
        if row.queued.mean_batch < TARGET * row.batch:
            lines.append(
                f"Batch {row.batch}: the queue was not always full, {row.queued.mean_batch:.1f} on average."
            )
        if row.failed:
            lines.append(f"Batch {row.batch}: {many(row.failed, 'query')} FAILED; its rates count as if answered.")
    return lines


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f}" if count else "-"


def _batches(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    try:
        batches = [int(part) for part in text.split(",")]
    except ValueError:
        batches = []
    if not batches or not all(1 <= batch <= _MOST for batch in batches):
        raise click.BadParameter(f"give numbers within 1..{_MOST} with commas between them, such as 1,8,64")
    return batches


@click.command()
@click.option(
    "--checkpoint",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps the checkpoint (4.4 GB) for the next time, or that holds VLAC's own weights.  "
    "[default: a temporary one]",
)
@click.option("--batches", default="1,2,4,8,16,32,64", show_default=True, callback=_batches, help="Batch sizes.")
@click.option("--seconds", default=10.0, show_default=True, help="Time to measure, for each figure.")
@click.option(
    "--device",
    type=click.Choice(["cuda", "cpu"]),
    default="cuda",
    show_default=True,
    help="cuda: the first GPU; choose it with CUDA_VISIBLE_DEVICES.",
)
@click.option("--layers", default=24, show_default=True, help="Layers of each of the model's two parts.")
@click.option("--width", default=2048, show_default=True, help="Width of the language model.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write the figures to this file too.")
def main(
    checkpoint: Path | None,
    batches: list[int],
    seconds: float,
    device: str,
    layers: int,
    width: int,
    json_file: str | None,
) -> None:
    """Measures on a GPU whether the queue keeps VLAC's engine busy."""
    with (
        tempfile.TemporaryDirectory(prefix="vlac-gpu-") as temporary,
        ProcessPoolExecutor(1, get_context("spawn")) as direct,
    ):
        try:
            check_versions(installed_versions(), "pt")
            environ = {"VLAC_CRITIC": "vlac", "VLAC_DEVICE": device}
            config = VlacConfig.from_env({**os.environ, **environ})
            gpu = direct.submit(look, device).result()
            if gpu is None:
                raise click.ClickException(
                    "torch sees no GPU, and this benchmark is about one: run it on a GPU host. To try the script "
                    "itself: --device cpu --layers 2 --width 128 --batches 1,2 --seconds 2"
                )
            folder = prepare(checkpoint or Path(temporary) / "like-2b", layers, width)
            environ["VLAC_MODEL_PATH"] = str(folder.resolve())
            config = replace(config, model_path=environ["VLAC_MODEL_PATH"])
            direct.submit(load, config).result()
        except ConfigError as error:
            raise click.ClickException(str(error)) from None
        described = _described(gpu, config)
        rows = []
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("measuring", total=2 * len(batches))
            for batch in batches:
                alone = direct.submit(measure_direct, batch, seconds).result()
                progress.advance(task)
                rows.append(Row(batch, alone, measure_queued(environ, batch, seconds)))
                progress.advance(task)
    allowed = config.gpu_memory_fraction * gpu.total_bytes
    says = verdict(rows, allowed, config.max_images)
    console = Console()
    console.print(table(rows, "\n".join(described.values())))
    for line in says:
        console.print(line, highlight=False)
    if json_file:
        figures = [{"ratio": row.ratio, **asdict(row)} for row in rows]
        text = json.dumps({**described, "allowed_bytes": allowed, "says": says, "rows": figures}, indent=2)
        Path(json_file).write_text(text + "\n")


def _described(gpu: Gpu, config: VlacConfig) -> dict[str, str]:
    """What the figures were measured on, and how."""
    model = json.loads((Path(config.model_path) / "config.json").read_text())["llm_config"]
    return {
        "machine": f"{gpu.name}; {machine()}",
        "model": f"{model['num_hidden_layers']} layers of width {model['hidden_size']}",
        "settings": f"dtype {config.dtype}, attention {config.attention}, max_images {config.max_images}, "
        f"gpu_memory_fraction {config.gpu_memory_fraction:g}",
    }


if __name__ == "__main__":
    main()
