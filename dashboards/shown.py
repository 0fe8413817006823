"""What the dashboard shows, as the keys have it."""

from __future__ import annotations

from dataclasses import dataclass

from dashboards.pages import Page
from dashboards.tables import SORTS

_PAGES: dict[str, Page] = {
    "o": "overview", "escape": "overview", "w": "workers", "e": "episodes", "f": "failures", "?": "help",
}  # fmt: skip


@dataclass
class Shown:
    """What the keys have changed.

    Attributes:
        scroll: lines of the page's list above the screen.
    """

    page: Page = "overview"
    sort: str = "name"
    scroll: int = 0
    paused: bool = False

    def press(self, key: str, *, rows: int, items: int) -> None:
        """Follows a key.

        Args:
            rows: lines of the list on the screen.
            items: lines that it has.
        """
        if key in _PAGES:
            self.page, self.scroll = _PAGES[key], 0
        elif key == "s":
            names = list(SORTS)
            self.sort = names[(names.index(self.sort) + 1) % len(names)]
        elif key in ("p", " "):
            self.paused = not self.paused
        else:
            step = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -rows, "pagedown": rows, "home": -items,
                    "end": items}.get(key, 0)  # fmt: skip
            self.scroll = max(0, min(self.scroll + step, items - rows))
