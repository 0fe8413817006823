"""What the pages tell a reader to type."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "docker-free-setup.md",
    ROOT / "SECURITY.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
#: Stands in the line before a snippet that needs what no test has, such as a simulator or a GPU.
ONLY_COMPILED = "<!-- not run by the tests:"

_FENCE = re.compile(r"^(?P<before>[^\n]*)\n```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """A fenced block of a page.

    Attributes:
        line: of the page, at which its text begins.
        runs: whether it is to be run, and not compiled only.
    """

    language: str
    text: str
    line: int
    runs: bool


def snippets(page: Path, *languages: str) -> list[Snippet]:
    """The page's blocks in these languages, in order."""
    content = page.read_text(encoding="utf-8")
    return [
        Snippet(
            found["language"],
            found["text"],
            content.count("\n", 0, found.start("text")) + 1,
            not found["before"].startswith(ONLY_COMPILED),
        )
        for found in _FENCE.finditer(content)
        if found["language"] in languages
    ]


def commands(page: Path) -> list[str]:
    """The shell commands of a page: those of its blocks, and those that stand in a sentence as code."""
    content = page.read_text(encoding="utf-8")
    text = "\n".join(snippet.text for snippet in snippets(page, "bash", "sh"))
    prose = _FENCE.sub("", content).replace("\n", " ")
    lines = text.replace("\\\n", " ").splitlines() + re.findall(r"`((?:vlac-queue|make|python -m) [^`]+)`", prose)
    bare = [re.sub(r"(^|\s)#\s.*", "", line) for line in lines]
    parts = [part.strip() for line in bare for part in re.split(r"&&|\s\|\s|;\s", line)]
    return [re.sub(r"^(?:export\s+)?(?:\w+=(?:'[^']*'|\S*)\s+)*", "", part) for part in parts if part]
