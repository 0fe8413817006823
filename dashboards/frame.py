"""Lines of a box on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text


class Frame:
    """Makes the lines of a box, each exactly `width` columns wide.

    Attributes:
        inner: columns inside of it.
    """

    def __init__(self, width: int, *, ascii_only: bool = False) -> None:
        self.width = width
        self.inner = width - 4
        self._glyphs = "-|++++++" if ascii_only else "─│╭╮╰╯├┤"

    def top(self, title: str, note: str = "") -> Text:
        return self._line(2, 3, title, note)

    def rule(self, title: str, note: str = "") -> Text:
        return self._line(6, 7, title, note)

    def bottom(self, title: str) -> Text:
        return self._line(4, 5, title, "", "dim")

    def row(self, content: Text) -> Text:
        bar = self._glyphs[1]
        line = Text(f"{bar} ", end="")
        line.append_text(fit(content, self.inner))
        line.append(f" {bar}")
        line.stylize("dim", 0, 2)
        line.stylize("dim", len(line) - 2)
        return line

    def beside(self, blocks: Sequence[tuple[Sequence[Text], int]]) -> list[Text]:
        """Blocks of lines, each with its width, side by side; the widths and 3 between two make up `inner`."""
        bar = Text(f" {self._glyphs[1]} ", "dim")
        height = max(len(lines) for lines, _ in blocks)
        return [
            self.row(bar.join(fit(lines[i] if i < len(lines) else Text(), width) for lines, width in blocks))
            for i in range(height)
        ]

    def _line(self, left: int, right: int, title: str, note: str, style: str = "bold") -> Text:
        dash = self._glyphs[0]
        line = Text(self._glyphs[left] + dash, "dim")
        if title:
            line.append(f" {elide(title, self.width - 6)} ", style)
        rest = self.width - line.cell_len - 1
        if note and cell_len(note) + 4 <= rest:
            line.append(dash * (rest - cell_len(note) - 3))
            line.append(f" {note} ")
            rest = 1
        line.append(dash * rest + self._glyphs[right])
        return line


def fit(text: Text, width: int) -> Text:
    """The text in exactly `width` columns: filled up, or cut, which two dots show."""
    length = text.cell_len
    if length == width:
        return text
    text = text.copy()
    if length > width:
        dots = ".."[: max(0, width)]
        text.truncate(width - len(dots))
        text.append(dots)
        length = text.cell_len
    text.append(" " * (width - length))
    return text


def elide(text: str, width: int) -> str:
    """The text, cut to `width` columns; two dots show that it was."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 2).rstrip() + ".." if width > 2 else ".."[: max(0, width)]


def pad(text: str, width: int, *, right: bool = False) -> str:
    """The text in exactly `width` columns, at the right of them or at the left."""
    if text.isascii() and len(text) <= width:
        return text.rjust(width) if right else text.ljust(width)
    text = elide(text, width)
    blank = " " * (width - cell_len(text))
    return blank + text if right else text + blank


def ascii_only(line: Text) -> Text:
    """The line with question marks, as wide, for letters that the terminal lacks; without its styles then."""
    if line.plain.isascii():
        return line
    return Text("".join(char if char.isascii() else "?" * cell_len(char) for char in line.plain))
