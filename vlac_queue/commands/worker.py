"""`vlac-queue worker`: a critic worker."""

from __future__ import annotations

import os
import sys

import click

from vlac_queue.config import VlacConfig, redact_url
from vlac_queue.console import errors_as_messages, queue_options
from vlac_queue.control import WORKER_ENVIRON, worker_command
from vlac_queue.texts import many


@click.command(short_help="Start a critic worker.")
@queue_options
@click.option(
    "--critic", help="Critic to run: vlac, reference or package.module:Class.  [default: VLAC_CRITIC, or vlac]"
)
@click.option("-v", "--verbose", is_flag=True, help="Log in detail, and errors with their tracebacks.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker(redis_url: str, queue: str, critic: str | None, verbose: bool, arguments: tuple[str, ...]) -> None:
    """Start a critic worker: `rq worker` with our worker class.

    Settings come from the environment (VLAC_*); ARGUMENTS go to `rq worker`, after --.
    """
    with errors_as_messages():
        config = VlacConfig.from_env(redis_url=redis_url, queue=queue, critic=critic)
    runs = f"critic {config.critic!r}"
    if config.critic == "vlac":
        runs += f" ({config.model_path or 'VLAC_MODEL_PATH is not set'}, engine {config.engine})"
    click.echo(
        f"serving queue {config.queue!r} at {redact_url(config.redis_url)} with {runs}, "
        f"up to {many(config.max_batch, 'query')} a batch"
    )
    sys.stdout.flush()
    # By the environment and not as arguments: a password in the URL would show in `ps`. The URL as it was given:
    # a password from a file stays out of the environment, too.
    os.environ.pop("RQ_REDIS_URL", None)
    os.environ.update(WORKER_ENVIRON, VLAC_REDIS_URL=redis_url, VLAC_CRITIC=config.critic, VLAC_QUEUE=queue)
    command = worker_command(queue, *(["--verbose"] if verbose else []), *arguments)
    os.execv(command[0], command)
