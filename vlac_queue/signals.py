"""Signals of programs that start processes: Ctrl-C at any moment must leave none of them behind."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: Ctrl-C, `kill`, and a terminal that closes.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds between two tries to raise a KeyboardInterrupt that was dropped.
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
    while frame is not None:
        if frame.f_code is _raise_again.__code__:  # it would be dropped there as well
            return
        frame = frame.f_back
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
    signal.signal(signal.SIGINT, _interrupt)
    threading.Thread(target=_press_again, args=(threading.get_ident(),), daemon=True).start()


def _press_again(thread: int) -> None:
    """Press Ctrl-C until `_interrupt` has raised."""
    while signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.pthread_kill(thread, signal.SIGINT)
        time.sleep(_AGAIN_S)


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
