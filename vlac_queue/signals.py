"""Signals of programs that start processes: Ctrl-C at any moment must leave none of them behind."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: Ctrl-C, `kill`, and a terminal that closes.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds until a KeyboardInterrupt that was dropped is raised again.
_AGAIN_S = 0.01


def interrupt_on_signals() -> None:
    """Turn the first signal that ends a program into KeyboardInterrupt(its number), and ignore those after it.

    So what follows, the end of all that was started, is not interrupted in turn.
    """
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _interrupt)
    keep_interrupts()


def _interrupt(number: int, frame: FrameType | None) -> None:
    for other in ENDING:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def keep_interrupts() -> None:
    """Raise KeyboardInterrupt anew where Python drops it: in a finalizer, or a callback of a weak reference."""
    sys.unraisablehook = _raise_again


def _raise_again(dropped: Any) -> None:
    if not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    # Not at once, from within this function: that would be dropped as well.
    again = (threading.main_thread().ident, signal.SIGINT)
    threading.Timer(_AGAIN_S, signal.pthread_kill, again).start()


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold those signals back until the block ends, such as one that starts a process and notes it.

    Python delivers signals to the main thread alone: in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        for number in before:
            signal.signal(number, hold)
        yield
    finally:
        for number, handler in before.items():
            # One that came before all were held has those after it ignored.
            if signal.getsignal(number) is hold:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if came:
            signal.raise_signal(came[0])
