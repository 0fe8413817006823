"""A worker process that begins anew: what is wrong with it (a hung critic, a lost GPU) ends with the process."""

from __future__ import annotations

import os
import sys
import time

import click

#: Restarts within so many seconds after which a worker ends instead: what is wrong does not go away then.
MOST_RESTARTS, WITHIN_S = 5, 600.0

# When this process began anew, seconds since 1970; kept in the environment, which outlives exec.
_VARIABLE = "_VLAC_WORKER_RESTARTS"


def may_restart() -> bool:
    """Whether this process is an `rq worker` of its own, and did not begin anew too often."""
    context = click.get_current_context(silent=True)
    return context is not None and context.info_name == "worker" and len(_restarts()) < MOST_RESTARTS


def restart() -> None:
    """Runs this process's command again in its place, under the same process id; does not return."""
    os.environ[_VARIABLE] = ",".join(f"{when:.0f}" for when in [*_restarts(), time.time()])
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _restarts() -> list[float]:
    texts = [text for text in os.environ.get(_VARIABLE, "").split(",") if text]
    return [when for when in map(float, texts) if 0 <= time.time() - when < WITHIN_S]
