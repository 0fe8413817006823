"""The command line: `vlac-queue`."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from vlac_queue.acl_command import acl
from vlac_queue.config import VlacConfig, redact_url
from vlac_queue.console import (
    errors_as_messages,
    queue_option,
    redis_url_option,
    replace_what_can_not_be_shown,
)
from vlac_queue.control import worker_command
from vlac_queue.demo.command import demo
from vlac_queue.doctor.command import doctor
from vlac_queue.episodes.command import episodes
from vlac_queue.rescore.command import rescore
from vlac_queue.score.command import score
from vlac_queue.settings_command import settings
from vlac_queue.texts import many
from vlac_queue.workers_command import workers

#: Commands of packages that import this one: loaded by name, when they are called.
_PLUGINS = {"report": "dashboards.report"}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_PLUGINS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _PLUGINS:
            command: click.Command = getattr(import_module(_PLUGINS[cmd_name]), cmd_name)
            return command
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vlac-queue")
def main() -> None:
    """Serves the VLAC critic to robot reinforcement learning through Redis and RQ."""
    replace_what_can_not_be_shown()


@main.command(short_help="Start a critic worker.")
@redis_url_option
@queue_option
@click.option(
    "--critic", help="Critic to run: vlac, reference or package.module:Class.  [default: VLAC_CRITIC, or vlac]"
)
@click.option("-v", "--verbose", is_flag=True, help="Log in detail, and errors with their tracebacks.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker(redis_url: str, queue: str, critic: str | None, verbose: bool, arguments: tuple[str, ...]) -> None:
    """Starts a critic worker: `rq worker` with our worker class.

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
    os.environ.update(
        VLAC_REDIS_URL=redis_url,
        RQ_CONFIG="vlac_queue.rq_settings",
        RQ_CONNECTION_CLASS="vlac_queue.connection.AnyRedis",
        RQ_WORKER_CLASS="workers.CriticWorker",
        VLAC_CRITIC=config.critic,
        VLAC_QUEUE=queue,
    )
    command = worker_command(queue, *(["--verbose"] if verbose else []), *arguments)
    os.execv(command[0], command)


@main.command(
    short_help="Measure the queue (in a checkout).",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measures the queue against what one would use instead (in a checkout)."""
    try:
        from benchmarks.command import bench as command
    except ModuleNotFoundError as error:
        # A stranger's package of that name is none of ours either.
        if error.name not in ("benchmarks", "benchmarks.command"):
            raise
        raise click.ClickException(
            "the benchmark is not part of the installed package; run it in a checkout: make bench"
        ) from None
    command.main(list(arguments), prog_name="vlac-queue bench", help_option_names=["-h", "--help"])


main.add_command(demo)
main.add_command(workers)
main.add_command(doctor)
main.add_command(score)
main.add_command(acl)
main.add_command(episodes)
main.add_command(rescore)
main.add_command(settings)

if __name__ == "__main__":
    main()
