"""The terminal: keys in, lines out. It is given back as it was, however the program ends."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType

from rich.console import Console
from rich.control import Control
from rich.segment import Segment, Segments
from rich.text import Text

from vlac_queue.signals import signals_held

#: What terminals send for keys that are no characters.
_SEQUENCES = {
    b"\x1b[A": "up", b"\x1bOA": "up", b"\x1b[B": "down", b"\x1bOB": "down", b"\x1b[5~": "pageup",
    b"\x1b[6~": "pagedown", b"\x1b[H": "home", b"\x1bOH": "home", b"\x1b[1~": "home", b"\x1b[F": "end",
    b"\x1bOF": "end", b"\x1b[4~": "end",
}  # fmt: skip


class Screen:
    """The whole terminal, for lines that change; only what changed is written.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._keys = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._settings: list[object] | None = None
        self._drawn: list[Text] = []
        self._size = (0, 0)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        return self._console.size

    def __enter__(self) -> Screen:
        try:
            self._enter()
            self._before = signal.signal(signal.SIGTSTP, self._suspend)
        except BaseException:  # Ctrl-C
            self._leave()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        with signals_held():
            signal.signal(signal.SIGTSTP, self._before)
            self._leave()

    def wait(self, wake: int, seconds: float) -> list[str]:
        """Waits for keys, for `wake` (a file descriptor) to become readable, or for `seconds`.

        Returns:
            The keys that were pressed: characters, or "up", "down", "pageup", "pagedown", "home", "end", "escape".
        """
        watched = [wake] if self._keys is None else [wake, self._keys]
        ready = select.select(watched, [], [], seconds)[0]
        if self._keys not in ready or self._keys is None:
            return []
        data = os.read(self._keys, 1024)
        if not data:  # the terminal has gone
            return ["q"]
        return keys_in(data)

    def draw(self, lines: Sequence[Text]) -> None:
        """Shows `lines`, as many as the screen has."""
        console = self._console
        segments: list[Segment] = []
        if self._size != self.size:
            self._size, self._drawn = self.size, []
            segments += [Control.clear().segment, Control.home().segment]
        for index, line in enumerate(lines):
            if index >= len(self._drawn) or self._drawn[index] != line:
                segments += [Control.move_to(0, index).segment, *line.render(console)]
        self._drawn = list(lines)
        # In one piece, so that nothing flickers.
        console.print(Segments(segments), end="", crop=False, soft_wrap=True)

    def _enter(self) -> None:
        if self._keys is not None:
            self._settings = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys, termios.TCSANOW)
        self._size = (0, 0)
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)

    def _leave(self) -> None:
        self._console.show_cursor(True)
        self._console.set_alt_screen(False)
        if self._keys is not None and self._settings is not None:
            termios.tcsetattr(self._keys, termios.TCSANOW, self._settings)  # type: ignore[arg-type]

    def _suspend(self, _number: int, _frame: FrameType | None) -> None:
        """Ctrl-Z: the shell gets a tidy terminal, and `fg` the picture back."""
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._enter()


def keys_in(data: bytes) -> list[str]:
    """The keys in what a terminal sent; sequences that are not known are left out."""
    keys = []
    while data:
        if not data.startswith(b"\x1b"):
            keys.append(data[:1].decode(errors="replace"))
            data = data[1:]
            continue
        if len(data) == 1 or data[1:2] not in (b"[", b"O"):
            keys.append("escape")
            data = data[1:]
            continue
        # A sequence ends with its first byte out of @..~ after the introducer.
        end = next((i for i in range(2, len(data)) if 0x40 <= data[i] <= 0x7E), len(data) - 1) + 1
        if data[:end] in _SEQUENCES:
            keys.append(_SEQUENCES[data[:end]])
        data = data[end:]
    return keys
