from __future__ import annotations

import sys
from types import ModuleType

import pytest

from vlac_queue import VlacConfig
from workers.stats import WorkerStats


def test_a_torch_that_is_being_imported_is_no_accelerator_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    life = {"name": "w", "host": "h", "state": "loading"}
    assert WorkerStats().described(VlacConfig(), **life)["device"] == "cpu"
