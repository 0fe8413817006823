"""Programs that only some tests need: a terminal to look at, a browser, certificates."""

from __future__ import annotations

import shutil

import pytest


def need(*names: str) -> str:
    """Return the path of the first of these programs that is there; skip the test where none is."""
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.skip(f"{names[0]} is missing")
