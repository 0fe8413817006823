"""Programs that some tests need: a terminal to look at, a browser."""

from __future__ import annotations

import os
import shutil

import pytest


def need(*names: str) -> str:
    """Path of the first of these programs that is there.

    Where none is, the test fails on CI, which installs them (.ci/run), and is skipped elsewhere.
    """
    for name in names:
        if path := shutil.which(name):
            return path
    missing = f"{' or '.join(names)} is not installed: apt-get install {names[0]}"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)
