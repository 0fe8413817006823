"""Lua scripts as files: put together, and at one with what Python names alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from vlac_queue.connection import Script
from vlac_queue.keys import LIMIT_FIELD, TOTAL_FIELD

_FILES = sorted([*ROOT.glob("*/lua/*.lua")])


def test_a_script_has_what_it_includes_in_place_and_no_comments(tmp_path: Path) -> None:
    (tmp_path / "twice.lua").write_text("-- Doubles.\nlocal function twice(x) return 2 * x end\n")
    script = tmp_path / "script.lua"
    script.write_text("-- Reply: a number.\n\n-- include twice\n  -- why\nreturn twice(ARGV[1])\n")
    assert Script.load(script) == "\nlocal function twice(x) return 2 * x end\nreturn twice(ARGV[1])"


def test_scripts_use_the_fields_that_python_names() -> None:
    purge, opening = (Path(ROOT / f"vlac_queue/lua/{name}.lua").read_text() for name in ("purge", "open"))
    assert f"'{TOTAL_FIELD}'" in purge and f"'{LIMIT_FIELD}'" in opening


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.stem)
def test_a_script_begins_with_what_it_does(path: Path) -> None:
    """Those that run on their own say what they take and give."""
    head = path.read_text().partition("\n\n")[0]
    assert head.startswith("-- ")
    if not head.startswith("-- For other scripts"):
        assert "-- KEYS:" in head and "-- ARGV:" in head and "-- Reply:" in head
