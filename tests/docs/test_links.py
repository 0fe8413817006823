"""Links between the pages, and the files that they name: that they are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT

_LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)")
_FILE = re.compile(r"`((?:vlac_queue|workers|dashboards|verl_adapter|benchmarks|examples|tests|docs)/[\w/.-]*)`")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The page's headings as GitHub writes them in a link."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_a_pages_links_lead_somewhere(page: Path) -> None:
    for path, anchor in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"no such file: {path}"
        assert target.is_relative_to(ROOT), f"not part of the repository: {path}"
        if anchor:
            assert anchor in anchors(target), f"no such heading: {path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = set(_FILE.findall(page.read_text(encoding="utf-8")))
    assert not (missing := sorted(path for path in named if not (ROOT / path).exists())), missing


def test_every_page_is_linked_from_the_readme_or_a_page_that_is() -> None:
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        links = _LINK.findall(page.read_text(encoding="utf-8"))
        ahead += {(page.parent / path).resolve() for path, _ in links if path.endswith(".md")} - reached
    assert set(PAGES) - reached == set()
