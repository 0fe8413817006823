from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.conftest import until
from tests.workers.vlac_stand_in import AHEAD_ONLY, StandInModel, colour
from vlac_queue import CriticClient
from vlac_queue.config import VlacConfig
from vlac_queue.errors import CriticFailed
from vlac_queue.messages import ValueVerdict
from workers.critics import CriticQuery
from workers.critics.vlac import VlacCritic
from workers.critics.vlac import ahead as ahead_module
from workers.critics.vlac.rows import Row


def made(say: Callable[[Row], str | Exception], **settings: Any) -> tuple[VlacCritic, StandInModel]:
    model = StandInModel(say)
    critic = VlacCritic(VlacConfig(eager_value=True, **settings), model)
    critic.load()
    return critic, model


def frames(count: int) -> Any:
    return np.stack([np.full((4, 4, 3), i, np.uint8) for i in range(count)])


def done(count: int, token: str = "t", **fields: Any) -> CriticQuery:
    return CriticQuery("done", "lift", frames(count), count - 1, token=token, **fields)


def value(count: int, token: str = "t", **fields: Any) -> CriticQuery:
    return CriticQuery("value", "lift", frames(count), count - 1, token=token, **fields)


def undone(row: Row) -> str:
    """Never done; pairs score by their last image."""
    return "0" if row.prompt.startswith("done") else colour(row)


def finish(critic: VlacCritic) -> int:
    """Works ahead to the end; returns in how many parts."""
    parts = 0
    while critic.work_ahead():
        parts += 1
    return parts


@pytest.mark.parametrize("fields", [{}, {"value_stride": 3}, {"reference": frames(4)}])
def test_values_asked_ahead_are_there_at_once_and_the_same(fields: Any) -> None:
    critic, model = made(undone)
    for count in range(1, 9):
        critic.answer([done(count, **fields)])
        finish(critic)
    model.calls.clear()
    answers = critic.answer([value(8, **fields)])
    # The last pair is left where it is closer than the stride: it would be another one with more frames.
    asked = [colour(row) for call in model.calls for row in call]
    assert asked == (["7"] if fields.get("value_stride") else [])
    plain = VlacCritic(VlacConfig(), StandInModel(undone))
    plain.load()
    assert answers == plain.answer([value(8, **fields)])


def test_a_value_query_asks_what_was_not_asked_ahead() -> None:
    critic, model = made(undone)
    critic.answer([done(4)])
    finish(critic)
    model.calls.clear()
    critic.answer([value(7)])
    assert [[colour(row) for row in call] for call in model.calls] == [["4", "5", "6"]]


def test_no_pair_is_asked_twice_ahead() -> None:
    critic, model = made(undone)
    for count in (2, 5, 5, 8):
        critic.answer([done(count)])
        finish(critic)
    pairs = [colour(row) for call in model.calls for row in call if row.prompt.startswith("score")]
    assert sorted(pairs) == ["1", "2", "3", "4", "5", "6", "7"]


def test_work_ahead_comes_in_parts_of_a_quarter_call() -> None:
    critic, model = made(undone, max_images=16)
    critic.answer([done(9)])
    model.calls.clear()
    assert finish(critic) == 4
    assert {len(call) for call in model.calls} == {2}


def test_there_is_nothing_to_do_ahead_for_first_frames_done_episodes_or_without_the_option() -> None:
    for critic, query in [
        (made(undone)[0], done(1)),
        (made(lambda row: "1")[0], done(5)),
        (made(undone)[0], done(5, token="")),
    ]:
        critic.answer([query])
        assert not critic.work_ahead()
    plain = VlacCritic(VlacConfig(), StandInModel(undone))
    plain.load()
    plain.answer([done(5)])
    assert not plain.work_ahead()


def test_sleeping_weights_are_not_woken_for_work_ahead() -> None:
    critic, model = made(undone)
    critic.answer([done(5)])
    critic.offload()
    assert not critic.work_ahead()
    assert model.asleep


def test_a_pair_that_fails_ahead_is_asked_again_by_the_value_query_only() -> None:
    sick = {"2"}
    critic, _ = made(lambda row: "banana" if colour(row) in sick else undone(row))
    critic.answer([done(4)])
    finish(critic)
    critic.answer([done(5)])
    assert finish(critic) == 1
    (answer,) = critic.answer([value(5)])
    assert isinstance(answer, CriticFailed) and "frames 1 and 2" in str(answer)
    sick.clear()
    (answer,) = critic.answer([value(5)])
    assert isinstance(answer, ValueVerdict)


def test_episodes_are_told_apart_by_their_opening() -> None:
    critic, _ = made(undone)
    critic.answer([done(3, token="a"), done(5, token="b")])
    finish(critic)
    first, second = critic.answer([value(3, token="a"), value(5, token="b")])
    assert isinstance(first, ValueVerdict) and isinstance(second, ValueVerdict)
    assert (first.critics, second.critics) == ((1.0, 2.0), (1.0, 2.0, 3.0, 4.0))


def test_frames_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead_module, "_WAITING_BYTES", 3 * frames(5).nbytes)
    critic, model = made(undone)
    critic.answer([done(5, token=str(i)) for i in range(10)])
    model.calls.clear()
    finish(critic)
    assert sum(map(len, model.calls)) == 3 * 4
    assert isinstance(critic.answer([value(5, token="0")])[0], ValueVerdict)


def test_an_idle_worker_works_ahead(workers: Any, client: CriticClient) -> None:
    workers.start(AHEAD_ONLY, VLAC_EAGER_VALUE="true")
    with client.episode(task="lift") as episode:
        for frame in frames(6):
            episode.push(frame)
            assert not episode.ask_done().result().done

        def answered() -> ValueVerdict | None:
            try:
                return episode.ask_value().result()
            except CriticFailed as error:
                assert "not asked ahead" in str(error)
                episode.ask_done().result()
                return None

        assert until(answered).critics == (1.0, 2.0, 3.0, 4.0, 5.0)
