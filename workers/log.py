"""What workers log, made safe: others chose job ids, names and texts, and a log is read in a terminal."""

from __future__ import annotations

import logging
import re
import traceback

import click
import redis
from rq.cli.helpers import CliConfig

from vlac_queue.connection import address, elsewhere
from vlac_queue.credentials import WORKER
from vlac_queue.errors import VlacQueueError
from vlac_queue.faults import as_ours
from vlac_queue.texts import clean

#: RQ's, so that a worker's lines look alike.
LOG = logging.getLogger("rq.worker")

#: Colours, which RQ itself writes.
_COLOUR = re.compile(r"\x1b\[[\d;]{0,8}m")
#: Most characters of a record.
_MAX_CHARS = 20_000


class SafeText(logging.Filter):
    """Makes each record printable: control characters become "?", and so no text can begin a line of its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = _printable(record.getMessage(), keep=""), None
        if record.exc_info and record.exc_info[0]:
            text = "".join(traceback.format_exception(*record.exc_info))
            record.exc_text = _printable(text.rstrip("\n"), keep="\n").replace("\n", "\n  ")
        return True


class Sentences(logging.Filter):
    """Has the worker's own log tell our errors and those of Redis that end `rq worker`, each as one sentence.

    RQ's command logs them with the root logger, whose lines look otherwise, and not with what is to be done. With
    `rq worker --verbose` the traceback is told, too.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else record.msg
        if not isinstance(error, VlacQueueError | redis.RedisError):
            return True
        LOG.error("%s", _sentence(error), exc_info=error if LOG.isEnabledFor(logging.DEBUG) else None)
        return False


def _sentence(error: VlacQueueError | redis.RedisError) -> str:
    command = click.get_current_context(silent=True)
    if isinstance(error, VlacQueueError) or command is None:
        return str(error)
    connection = CliConfig(**command.params).connection
    return f"{as_ours(error, address(connection), WORKER)} {elsewhere(connection)}".rstrip()


def make_logs_safe() -> None:
    """For RQ's worker and its scheduler, and what its command says of an error; again changes nothing."""
    for name in ("rq.worker", "rq.scheduler", "rq.job"):
        logging.getLogger(name).addFilter(_SAFE)
    # The command that runs a worker logs with no logger of its own what ends it.
    logging.getLogger().addFilter(_SENTENCES)


def shown(data: bytes) -> str:
    """Return bytes from Redis, fit for a log."""
    return repr(data[:100])


def _printable(text: str, *, keep: str) -> str:
    shown = clean(text, _MAX_CHARS, keep=f"{keep}\x1b")
    parts = _COLOUR.split(shown)
    colours = [*_COLOUR.findall(shown), ""]
    return "".join(part.replace("\x1b", "?") + colour for part, colour in zip(parts, colours, strict=True))


_SAFE, _SENTENCES = SafeText(), Sentences()
