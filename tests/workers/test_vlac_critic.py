from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.workers.vlac_stand_in import LOST_ONCE, StandInModel, colour
from vlac_queue import CriticClient, VlacConfig
from vlac_queue.errors import CriticFailed
from vlac_queue.messages import DoneVerdict, ValueVerdict
from workers.critics import CriticAnswer, CriticQuery, make_critic
from workers.critics.vlac import VlacCritic
from workers.critics.vlac.rows import Row


def critic(say: Callable[[Row], str | Exception], **settings: Any) -> tuple[VlacCritic, StandInModel]:
    model = StandInModel(say)
    made = VlacCritic(VlacConfig(**settings), model)
    made.load()
    return made, model


def query(kind: Any, task: str = "lift", count: int = 3, **fields: Any) -> CriticQuery:
    frames = np.stack([np.full((4, 4, 3), i, np.uint8) for i in range(count)])
    return CriticQuery(kind, task, frames, count - 1, **fields)


def failed(answer: CriticAnswer) -> str:
    assert isinstance(answer, CriticFailed)
    return str(answer)


def test_the_queue_finds_it_by_name() -> None:
    assert isinstance(make_critic(VlacConfig(critic="vlac")), VlacCritic)


@pytest.mark.parametrize(("said", "done"), [("1.0", True), ("0.9", False), ("0.0", False)])
def test_done_is_strictly_above_the_threshold(said: str, done: bool) -> None:
    made, _ = critic(lambda row: said)
    (answer,) = made.answer([query("done", done_threshold=0.9)])
    assert answer == DoneVerdict(done=done, score=float(said), frame=2)


def test_values_are_the_installed_recursion_of_the_pair_scores() -> None:
    made, _ = critic(lambda row: {"1": "10", "2": "-50"}[colour(row)])
    (answer,) = made.answer([query("value")])
    assert answer == ValueVerdict(values=(0.0, 1000 / 110, 1000 / 110 + 20.0), critics=(10.0, -50.0))


def test_the_recursion_can_be_chosen() -> None:
    made, _ = critic(colour, value_recursion="mix_f")
    (answer,) = made.answer([query("value")])
    assert isinstance(answer, ValueVerdict)
    assert answer.values[0] == 1.0  # the stand-in's sign of having been asked for mix_f


def test_rows_of_all_kinds_and_tasks_share_a_call() -> None:
    made, model = critic(lambda row: "1")
    made.answer([query("done", "lift"), query("value", "push"), query("done", "pull")])
    assert [sorted({row.prompt for row in call}) for call in model.calls] == [
        ["done: lift", "done: pull", "score with 0: push"]
    ]


def test_an_answer_does_not_depend_on_what_else_is_asked() -> None:
    asked = [query("value", count=n) for n in (2, 5, 3)] + [query("done", count=2)]
    together = critic(colour)[0].answer(asked)
    assert together == [critic(colour)[0].answer([each])[0] for each in asked]


def test_a_bad_row_fails_its_own_query_with_what_was_said() -> None:
    made, _ = critic(lambda row: "banana" if row.prompt.endswith("push") else "1")
    first, second, third = made.answer([query("done"), query("value", "push"), query("value")])
    assert isinstance(first, DoneVerdict)
    assert "frames 0 and 1" in failed(second) and "'banana'" in failed(second)
    assert isinstance(third, ValueVerdict)


@pytest.mark.parametrize("said", ["nan", "inf", "", "seven", "7"])
def test_no_verdict_is_made_of_a_done_answer_that_is_none(said: str) -> None:
    made, _ = critic(lambda row: said)
    failed(made.answer([query("done")])[0])


def test_scores_that_the_recursion_divides_by_fail_their_query() -> None:
    made, _ = critic(lambda row: "-100")
    assert "-100.0" in failed(made.answer([query("value")])[0])


def test_tasks_reach_the_prompt_without_markup() -> None:
    made, model = critic(lambda row: "1")
    made.answer([query("done", "lift <image> [UNUSED_TOKEN_1]the cup")])
    assert model.calls[0][0].prompt == "done: lift the cup"


def test_a_task_of_markup_only_fails_alone() -> None:
    made, _ = critic(lambda row: "1")
    first, second = made.answer([query("done", "<image>"), query("done")])
    assert "plain words" in failed(first)
    assert isinstance(second, DoneVerdict)


def test_progress_along_the_reference_is_zero_at_the_first_frame() -> None:
    reference = np.zeros((3, 4, 4, 3), np.uint8)
    made, model = critic(lambda row: "1", done_by="reference")
    assert made.done_history
    (answer,) = made.answer([query("done", count=1, reference=reference)])
    assert answer == DoneVerdict(done=False, score=0.0, frame=0)
    assert model.tried == []


def test_a_sleeping_model_wakes_for_the_next_query() -> None:
    made, model = critic(lambda row: "1")
    before = made.answer([query("done")])
    made.offload()
    assert model.asleep
    assert made.answer([query("done")]) == before
    assert not model.asleep


def test_waking_tries_full_calls_again() -> None:
    made, model = critic(lambda row: "1")
    model.memory = 2
    made.answer([query("done")] * 8)
    model.memory = 100
    made.offload()
    model.tried.clear()
    made.answer([query("done")] * 8)
    assert model.tried == [8]


def test_it_says_so_when_it_was_not_loaded() -> None:
    with pytest.raises(CriticFailed, match=r"load\(\)"):
        VlacCritic(VlacConfig()).answer([query("done")])


def test_its_prompts_have_a_hash_once_it_is_loaded() -> None:
    assert VlacCritic(VlacConfig(), StandInModel(colour)).prompt_hash == ""
    made, _ = critic(colour)
    assert re.fullmatch("[0-9a-f]{12}", made.prompt_hash)
    assert made.prompt_hash == critic(colour)[0].prompt_hash
    assert made.prompt_hash != critic(colour, done_by="goal")[0].prompt_hash


def test_done_queries_need_no_earlier_frames_by_default() -> None:
    assert not critic(lambda row: "1")[0].done_history


def test_a_worker_that_lost_its_accelerator_begins_anew(workers: Any, client: CriticClient) -> None:
    worker = workers.start(LOST_ONCE)
    with client.episode(task="lift") as episode:
        episode.push(np.zeros((4, 4, 3), np.uint8))
        assert episode.ask_done().result().done
    assert "illegal memory access" in workers.log.read_text()
    assert worker.poll() is None
