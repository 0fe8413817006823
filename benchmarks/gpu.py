"""`python -m benchmarks.gpu`: does the queue keep VLAC's engine busy? Images a second with it and without it.

For each batch size the same batches are answered twice: by `VlacCritic.answer`, called directly in a process that
does nothing else, and through Redis by a real `rq worker` whose queue is always full. The two take turns on the
GPU: while the worker runs, the direct process has its weights in host memory. A query asks whether a task is done
in one image of 256x256x3.

Then VLAC's own code and the critic, on every engine that is installed, are asked the same done queries and value
lists, as `benchmarks.vlac_peer` does on a CPU.

The model has the shape of InternVL2-2B and random weights (benchmarks/tiny_vlac.py); it says nothing about robots,
and takes the time and memory of one that does. The other settings are a worker's own, from `VLAC_*`.

File and `main` are long since the measurements stand here in the order in which they are made and printed.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import redis
from rich.console import Console
from rich.table import Table

from benchmarks import report, vlac_peer
from benchmarks.direct import Direct, Gpu, load, look, make_checkpoint, measure_direct, unload
from benchmarks.figures import line
from benchmarks.load import full_queue
from benchmarks.processes import check_alive, machine, worker
from vlac_queue.client import CriticClient, Pending
from vlac_queue.config import VlacConfig
from vlac_queue.console import progress_bar
from vlac_queue.control import WorkerInfo, critic_workers
from vlac_queue.costs import Costs
from vlac_queue.errors import ConfigError, CriticTimeout
from vlac_queue.keys import Keys
from vlac_queue.messages import DoneVerdict
from vlac_queue.server import RedisServer
from vlac_queue.texts import many
from workers.critics.vlac.installation import VERSION_CHECKS, raise_if_broken

#: What the queue must keep of the direct rate.
TARGET = 0.95
#: Largest batch.
_MOST = 64
#: Batches asked and not answered: one at the critic, one waiting in the worker, the others on the queue.
_OPEN = 6
#: Least batches measured, however long they take.
_LEAST_BATCHES = 3
#: Seconds that a query may take; on a CPU they are slow.
_TIMEOUT_S = 1800.0


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


def measure_queued(environ: Mapping[str, str], batch: int, seconds: float) -> Queued:
    """Keep the queue of a new worker full for about `seconds` seconds, after some batches to warm up.

    Raises:
        ClickException: the worker ended; it has said why.
    """
    with (
        RedisServer() as server,
        worker(server.url, **environ, VLAC_MAX_BATCH=str(batch)) as process,
        CriticClient(VlacConfig(redis_url=server.url, max_batch=batch, timeout_s=_TIMEOUT_S)) as client,
        redis.Redis.from_url(server.url) as connection,
    ):
        _published(connection, process, queries=0)
        _keep_full(client, process, batch, 0.0)  # warms up
        before = _published(connection, process, queries=client.stats.queries)
        answered, took = _keep_full(client, process, batch, seconds)
        after = _published(connection, process, queries=client.stats.queries)
    return Queued(
        images_per_s=(len(answered) - 1) * batch / (answered[-1] - answered[0]),
        busy=(after.busy_s - before.busy_s) / took,
        mean_batch=(after.queries - before.queries) / (after.batches - before.batches),
        failed=after.failures,
        peak_bytes=after.accelerator_bytes,
    )


def _keep_full(
    client: CriticClient, process: subprocess.Popen[bytes], batch: int, seconds: float
) -> tuple[list[float], float]:
    """Ask so that `_OPEN` batches are always open, then wait for all of them.

    Returns:
        When each batch was answered while others waited, in seconds of the monotonic clock; and the seconds from
        the first question to the last answer.
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


def _wait(
    client: CriticClient, process: subprocess.Popen[bytes], question: Sequence[Pending[DoneVerdict]]
) -> None:
    """Wait for the answers; they are not looked at, the worker counts its failures."""
    while True:
        try:
            return client.wait(question, timeout=5.0)
        except CriticTimeout:
            check_alive(process)


def _published(connection: redis.Redis, process: subprocess.Popen[bytes], *, queries: int) -> WorkerInfo:
    """Return what the worker says of itself once it has loaded and answered `queries` queries."""
    while True:
        check_alive(process)
        for info in critic_workers(connection, Keys("vlac")):
            if info.state != "loading" and info.queries == queries:
                return info
        time.sleep(0.05)


def table(rows: Sequence[Row], caption: str) -> Table:
    """Return rates, busy fraction and memory for each batch size."""
    return report.table(
        "VLAC answering done queries: called directly, and through the queue",
        ("batch", "direct images/s", "queue images/s", "queue/ direct", "critic busy", "direct GB", "worker GB",
         "failed"),
        [
            [
                str(row.batch),
                f"{row.direct.images_per_s:.1f}",
                f"{row.queued.images_per_s:.1f}",
                f"{row.ratio:.3f}",
                f"{row.queued.busy:.1%}",
                _gigabytes(row.direct.peak_bytes),
                _gigabytes(row.queued.peak_bytes),
                str(row.failed),
            ]
            for row in rows
        ],
        caption=caption,
    )  # fmt: skip


def verdict(rows: Sequence[Row], allowed_bytes: float, max_images: int) -> list[str]:
    """Return sentences on what the figures say. `allowed_bytes` is 0 without a GPU."""
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


def costs(rows: Sequence[Row], source: str) -> Costs | None:
    """Return what images and calls cost on torch, from batches that were one call each; None from fewer than two.

    A batch of n known frames takes call_s + n * language_s, one of new frames n * vision_s more.
    """
    whole = [row for row in rows if row.batch <= row.direct.max_images]
    if len(whole) < 2:
        return None
    counts = [row.batch for row in whole]
    new = line(counts, [row.batch / row.direct.images_per_s for row in whole])
    known = line(counts, [row.batch / row.direct.known_images_per_s for row in whole])
    return Costs(max(0.0, new.each - known.each), known.each, max(0.0, known.fixed), False, source)


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
@click.option(
    "--frames",
    type=click.IntRange(0),
    default=33,
    show_default=True,
    help="Frames of the episodes that GAC_model and the critic are asked about; 0: GAC_model is not asked.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write the figures to this file too.")
def main(
    checkpoint: Path | None,
    batches: list[int],
    seconds: float,
    device: str,
    layers: int,
    width: int,
    frames: int,
    json_file: str | None,
) -> None:
    """Measures on a GPU whether the queue keeps VLAC's engine busy."""
    environ = {"VLAC_CRITIC": "vlac", "VLAC_DEVICE": device}
    with (
        tempfile.TemporaryDirectory(prefix="vlac-gpu-") as temporary,
        ProcessPoolExecutor(1, get_context("spawn")) as direct,
    ):
        folder = (checkpoint or Path(temporary) / "like-2b").resolve()
        environ["VLAC_MODEL_PATH"] = str(folder)
        try:
            config = VlacConfig.from_env({**os.environ, **environ})
            raise_if_broken(config, *VERSION_CHECKS)
            gpu = direct.submit(look, device).result()
            direct.submit(make_checkpoint, folder, layers, width).result()
            direct.submit(load, config).result()
        except ConfigError as error:
            raise click.ClickException(str(error)) from None
        described = _described(gpu, config)
        rows = _measure(direct, environ, batches, seconds)
        allowed = config.gpu_memory_fraction * gpu.total_bytes
        says = verdict(rows, allowed, config.max_images)
        _print([table(rows, "\n".join(described.values()))], says)
        # On vLLM a batch that is known costs next to nothing.
        cost = costs(rows, f"measured on {gpu.name}") if config.engine == "pt" else None
        figures = {
            **described,
            "costs": cost and asdict(cost),
            "allowed_bytes": allowed,
            "says": says,
            "rows": [{"ratio": row.ratio, **asdict(row)} for row in rows],
            "peers": [],
        }
        # Already now: GAC_model may run out of memory.
        _write(json_file, figures)
        direct.submit(unload).result()
        peers = vlac_peer.compare(config, vlac_peer.installed(), frames) if frames else []
    peers_say = vlac_peer.verdict(peers)
    _print(vlac_peer.tables(peers), peers_say)
    _write(json_file, figures | {"says": says + peers_say, "peers": [asdict(row) for row in peers]})


def _write(json_file: str | None, figures: Mapping[str, Any]) -> None:
    if json_file:
        Path(json_file).write_text(json.dumps(figures, indent=2) + "\n")


def _print(tables: Sequence[Table], says: Sequence[str]) -> None:
    console = Console()
    for made in tables:
        console.print(made)
    for sentence in says:
        console.print(sentence, highlight=False)


def _measure(direct: Executor, environ: Mapping[str, str], batches: Sequence[int], seconds: float) -> list[Row]:
    rows = []
    with progress_bar() as progress:
        for batch in progress.track(batches, description="batch sizes"):
            alone = direct.submit(measure_direct, batch, seconds).result()
            rows.append(Row(batch, alone, measure_queued(environ, batch, seconds)))
    return rows


def _described(gpu: Gpu, config: VlacConfig) -> dict[str, str]:
    """Return what the figures were measured on, and how."""
    model = json.loads((Path(config.model_path) / "config.json").read_text())["llm_config"]
    return {
        "machine": f"{gpu.name}; {machine()}",
        "model": f"{model['num_hidden_layers']} layers of width {model['hidden_size']}",
        "settings": f"dtype {config.dtype}, attention {config.attention}, max_images {config.max_images}, "
        f"gpu_memory_fraction {config.gpu_memory_fraction:g}",
    }


if __name__ == "__main__":
    main()
