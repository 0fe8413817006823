"""The benchmark's stand-in counts what the real engine computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.timed_vlac import TimedModel, TimedVlac
from benchmarks.vlac_asking import Passes, make_small
from tests.real_vlac.conftest import TASK
from vlac_queue import VlacConfig
from vlac_queue.costs import COSTS
from vlac_queue.frames import Frames
from workers.critics import CriticQuery
from workers.critics.vlac import VlacCritic
from workers.critics.vlac.model import VlacModel

#: Tokens of an image, and most of a row's words and its answer.
IMAGE, WORDS = 256, 300

Ask = Callable[..., tuple[int, int]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Asks both; checks tokens, and returns images through vision of both."""
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    make_small(folder, layers=2, width=128)
    config = VlacConfig(model_path=str(folder), device="cpu", max_images=64)
    model, timed = VlacModel.load(config), TimedModel(config, COSTS["pt"])
    real, stand_in, passes = VlacCritic(config, model), TimedVlac(config, timed), Passes(model.gac.model)
    real.load()
    stand_in.load()

    def ask_both(*queries: CriticQuery) -> tuple[int, int]:
        vision, tokens, before = passes.vision, passes.tokens, vars(timed.work).copy()
        real.answer(queries)
        stand_in.answer(queries)
        images, rows = timed.work.language - before["language"], timed.work.rows - before["rows"]
        assert 0 < passes.tokens - tokens - IMAGE * images < WORDS * rows
        return passes.vision - vision, timed.work.vision - before["vision"]

    return ask_both


def frames(count: int, seed: int) -> Frames:
    return np.random.default_rng(seed).integers(0, 255, (count, 64, 64, 3), np.uint8)


def test_the_stand_in_counts_what_torch_computes(ask: Ask) -> None:
    run, other, reference = frames(6, 0), frames(4, 1), frames(12, 2)
    assert ask(*(CriticQuery("done", TASK, run[i : i + 1], i) for i in range(6))) == (6, 6)
    assert ask(CriticQuery("value", TASK, run, 5)) == (0, 0)
    assert ask(CriticQuery("value", TASK, run, 5, reference=reference)) == (9, 9)
    values = [CriticQuery("value", TASK, each, len(each) - 1, reference=reference) for each in (run[:3], other)]
    assert ask(*values) == (4, 4)
    assert ask(CriticQuery("done", TASK, other[:1], 0), CriticQuery("value", TASK, other, 3)) == (0, 0)
