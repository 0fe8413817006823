"""What the commands share: options, and errors as sentences."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from vlac_queue.errors import VlacQueueError

redis_url_option = click.option(
    "--redis-url",
    envvar=["VLAC_REDIS_URL", "RQ_REDIS_URL"],
    default="redis://localhost:6379/0",
    # Not show_default: with an environment variable set, click would print the password in it.
    help="Redis to use.  [env: VLAC_REDIS_URL, RQ_REDIS_URL; default: redis://localhost:6379/0]",
)
queue_option = click.option("--queue", envvar="VLAC_QUEUE", default="vlac", show_default=True, help="RQ queue.")


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Shows our errors, missing extras and unusable values as one sentence with exit code 1, Ctrl-C as 130."""
    try:
        yield
    except (VlacQueueError, ImportError, RuntimeError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("interrupted; everything that was started has ended", err=True)
        sys.exit(130)
