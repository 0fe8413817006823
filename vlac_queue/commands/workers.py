"""`vlac-queue workers`: list workers, put their critics to sleep, or wake them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

import click

from vlac_queue.config import redact_url
from vlac_queue.connection import Patience
from vlac_queue.console import connected, errors_as_messages, print_table, queue_options
from vlac_queue.control import WorkerInfo, critic_workers, order_workers
from vlac_queue.credentials import ROLLOUT
from vlac_queue.keys import Keys
from vlac_queue.texts import size

_timeout_option = click.option(
    "--timeout", default=60.0, show_default=True, help="Seconds to wait for the workers."
)
_names_argument = click.argument("names", nargs=-1)


@click.group(short_help="List workers; have critics sleep or wake.")
def workers() -> None:
    """List workers, put their critics to sleep, or wake them.

    A sleeping critic has given its GPU memory back; the next query wakes it, so nothing is lost.
    """


@workers.command("list")
@queue_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_workers(redis_url: str, queue: str, as_json: bool) -> None:
    """Show the critic workers of the queue; exit code 1 if there is none."""
    with errors_as_messages(), connected(redis_url) as connection:
        found = critic_workers(connection, Keys(queue))
    if as_json:
        click.echo(json.dumps([asdict(worker) for worker in found], indent=2))
    elif found:
        _show(found)
    else:
        click.echo(f"no critic worker on queue {queue!r} at {redact_url(redis_url)}", err=True)
    if not found:
        raise SystemExit(1)


@workers.command()
@queue_options
@_timeout_option
@_names_argument
def sleep(redis_url: str, queue: str, timeout: float, names: tuple[str, ...]) -> None:
    """Have the critics of NAMES (or of all) give their GPU memory back, and wait for it."""
    _order("sleep", redis_url, queue, timeout, names)


@workers.command()
@queue_options
@_timeout_option
@_names_argument
def wake(redis_url: str, queue: str, timeout: float, names: tuple[str, ...]) -> None:
    """Bring the critics of NAMES (or of all) back, ahead of the next query."""
    _order("wake", redis_url, queue, timeout, names)


def _order(
    order: Literal["sleep", "wake"], redis_url: str, queue: str, timeout: float, names: Sequence[str]
) -> None:
    with errors_as_messages(), connected(redis_url, ROLLOUT) as connection:
        patience = Patience(redis_url, timeout)
        _show(order_workers(connection, Keys(queue), order, names, timeout_s=timeout, patience=patience))


def _show(found: Sequence[WorkerInfo]) -> None:
    headers = ("worker", "host", "critic", "state", "queries", "failed", "memory", "GPU memory")
    rows = [
        (
            worker.name, worker.host, worker.critic, worker.state, f"{worker.queries:,}", f"{worker.failures:,}",
            size(worker.rss_bytes), size(worker.accelerator_bytes) if worker.accelerator_bytes else "-",
        )
        for worker in found
    ]  # fmt: skip
    # Names stay whole, however narrow the terminal: `sleep` and `wake` want them.
    print_table(headers, rows, texts=4)
