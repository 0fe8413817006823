"""Our answers are those of GAC_model's own trajectory functions, row for row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.real_vlac.conftest import TASK, pictures
from vlac_queue.commands.demo.rollouts import load_rollouts
from vlac_queue.errors import CriticFailed
from vlac_queue.frames import Frames
from vlac_queue.messages import DoneVerdict, ValueVerdict
from workers.critics import CriticAnswer, CriticQuery, Pair
from workers.critics.vlac import VlacCritic

Load = Callable[..., VlacCritic]


def done_queries(frames: Frames, task: str = TASK, *, history: bool = False, **fields: Any) -> list[CriticQuery]:
    return [
        CriticQuery("done", task, frames[0 if history else i : i + 1], i, **fields) for i in range(len(frames))
    ]


def value_query(frames: Frames, task: str = TASK, **fields: Any) -> CriticQuery:
    return CriticQuery("value", task, frames, len(frames) - 1, **fields)


def scores(answers: Sequence[CriticAnswer]) -> list[float]:
    assert all(isinstance(answer, DoneVerdict) for answer in answers), answers
    return [answer.score for answer in answers]  # type: ignore[union-attr]


def value(answer: CriticAnswer) -> ValueVerdict:
    assert isinstance(answer, ValueVerdict), answer
    return answer


@pytest.mark.parametrize("rich", [True, False])
@pytest.mark.parametrize("task", [TASK, "open the drawer", "打开抽屉 (2 cm)"])
def test_done_is_vlacs_own(load: Load, gac: Any, run: Frames, rich: bool, task: str) -> None:
    theirs = gac.get_trajectory_done(task=task, image_list=pictures(run), rich=rich)
    assert scores(load(done_rich=rich).answer(done_queries(run, task))) == theirs


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
def test_done_is_above_the_threshold_as_in_vlac(load: Load, gac: Any, run: Frames, threshold: float) -> None:
    frames = np.concatenate([run, run[:, ::-1], 255 - run])
    theirs = gac.get_trajectory_done(task=TASK, image_list=pictures(frames), rich=True, threshold=threshold)
    answers = load().answer(done_queries(frames, done_threshold=threshold))
    assert [score if score > 0 else 0.0 for score in theirs] == [
        answer.score if answer.done else 0.0  # type: ignore[union-attr]
        for answer in answers
    ]
    assert len(set(scores(answers))) > 3, "the checkpoint must tell frames apart"


def test_done_by_goal_is_vlacs_own(load: Load, gac: Any, run: Frames, reference: Frames) -> None:
    theirs = gac.get_trajectory_done(
        task=TASK, image_list=pictures(run), goal_image=pictures(reference)[-1], rich=True
    )
    assert scores(load(done_by="goal").answer(done_queries(run, reference=reference))) == theirs


@pytest.mark.parametrize("rich", [True, False])
def test_done_by_reference_is_vlacs_own(load: Load, gac: Any, run: Frames, reference: Frames, rich: bool) -> None:
    frames = np.concatenate([255 - run[::2], run[::2, ::-1]])
    theirs = gac.get_trajectory_done(
        task=TASK, image_list=pictures(frames), ref_image_list=pictures(reference), ref_num=2, rich=rich
    )
    critic = load(done_by="reference", ref_num=2, done_rich=rich)
    ours = scores(critic.answer(done_queries(frames, history=True, reference=reference)))
    assert ours == theirs
    assert ours[0] == 0.0 and len(set(ours)) > (2 if rich else 1), "the checkpoint must tell frames apart"


@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("rich", [False, True])
@pytest.mark.parametrize("recursion", ["default", "mix_f"])
def test_values_are_vlacs_own(
    load: Load,
    gac: Any,
    run: Frames,
    reference: Frames,
    with_reference: bool,
    stride: int,
    rich: bool,
    recursion: str,
) -> None:
    # VLAC's own choice of frames leaves out the last one; ours is given to it as a list without gaps.
    frames = run[[*range(0, len(run) - 1, stride), len(run) - 1]]
    critics, values = gac.get_trajectory_critic(
        task=TASK,
        image_list=pictures(frames),
        ref_image_list=pictures(reference) if with_reference else None,
        ref_num=4,
        rich=rich,
        value_simple=True if recursion == "default" else "mix_f",
    )
    critic = load(value_rich=rich, value_recursion=recursion, ref_num=4)
    query = value_query(run, value_stride=stride, reference=reference if with_reference else None)
    ours = value(critic.answer([query])[0])
    assert list(ours.critics) == critics
    assert list(ours.values) == values
    assert list(ours.values) == gac.critic_to_value_simple(
        list(ours.critics), simple=True if recursion == "default" else "mix_f"
    )


def test_pair_scores_depend_on_the_order_of_the_images(load: Load, run: Frames) -> None:
    critic = load()
    forwards, backwards = critic.answer([value_query(run), value_query(run[::-1])])
    assert value(forwards).critics != value(backwards).critics[::-1]


def test_values_of_simulator_frames_are_vlacs_own(load: Load, gac: Any) -> None:
    rollout = load_rollouts("expert")[0]
    critics, values = gac.get_trajectory_critic(task=rollout.task, image_list=pictures(rollout.frames))
    ours = value(load().answer([value_query(rollout.frames, rollout.task)])[0])
    assert (list(ours.critics), list(ours.values)) == (critics, values)
    assert len(set(critics)) > 2, "the checkpoint must tell pairs apart"


@pytest.mark.parametrize("with_reference", [False, True])
def test_pairs_scored_one_by_one_make_the_same_values(
    load: Load, run: Frames, reference: Frames, with_reference: bool
) -> None:
    critic = load(ref_num=3)
    query = value_query(run, reference=reference if with_reference else None)
    found = []
    for first, second in pairwise(range(len(run))):
        so_far = replace(query, frames=query.frames[: second + 1], frame=second)
        found += critic.score([Pair(so_far, first, second)])
    assert critic.value(found) == critic.answer([query])[0]


def mixed_queries(run: Frames, reference: Frames) -> list[CriticQuery]:
    return [
        *done_queries(run),
        value_query(run, "open the drawer"),
        *done_queries(run[::-1], "close the door"),
        value_query(run[::-1], reference=reference),
        value_query(255 - run, "push", value_stride=2),
    ]


@pytest.mark.parametrize("max_images", [1, 7, 200])
def test_answers_of_a_mixed_batch_are_those_of_each_query_alone(
    load: Load, run: Frames, reference: Frames, max_images: int
) -> None:
    queries = mixed_queries(run, reference)
    alone = [load_once.answer([query])[0] for load_once in [load(ref_num=3)] for query in queries]
    assert load(ref_num=3, max_images=max_images).answer(queries) == alone


def test_tasks_are_told_apart_in_a_batch(load: Load, run: Frames) -> None:
    critic = load(done_rich=True)
    tasks = ["open the drawer", "x" * 400, "put all of the red cups into the box on the left " * 10]
    together = critic.answer([query for task in tasks for query in done_queries(run, task)])
    assert together == [answer for task in tasks for answer in critic.answer(done_queries(run, task))]
    by_task = [scores(together[i : i + len(run)]) for i in range(0, len(together), len(run))]
    assert by_task[0] != by_task[1] != by_task[2], "the checkpoint must tell tasks apart"


@pytest.mark.parametrize("markup", ["<IMG_CONTEXT>", "<image>", "<img></img>", "<|im_end|>", "</s>", "<video>"])
def test_markup_in_one_task_leaves_its_neighbours_alone(load: Load, run: Frames, markup: str) -> None:
    critic = load()
    clean = [*done_queries(run[:2], "lift the cup"), *done_queries(run[2:])]
    dirty = [*done_queries(run[:2], f"lift {markup}the cup"), *done_queries(run[2:])]
    assert critic.answer(dirty) == critic.answer(clean)


def language_model(critic: VlacCritic) -> Any:
    assert critic._model is not None
    gac = critic._model.gac
    return (gac.engine.inner_model if critic.config.engine == "vllm" else gac.model).language_model


def says(critic: VlacCritic, change: Callable[[Any], Any]) -> None:
    """Changes what the model says: `change` gets the logits of every step."""
    model = language_model(critic)
    head = model.logits_processor if critic.config.engine == "vllm" else model.lm_head
    head.register_forward_hook(lambda module, inputs, logits: change(logits))


def failures(answers: Sequence[CriticAnswer]) -> list[str]:
    assert all(isinstance(answer, CriticFailed) for answer in answers), answers
    return [str(answer) for answer in answers]


def only(token: int) -> Callable[[Any], Any]:
    def change(logits: Any) -> Any:
        logits = logits * 0
        logits[..., token] = 100.0
        return logits

    return change


@pytest.mark.parametrize("rich", [True, False])
def test_endless_and_empty_answers_fail_their_queries(load: Load, run: Frames, rich: bool) -> None:
    queries = [*done_queries(run[:2]), value_query(run[:3])]
    endless = load(done_rich=rich)
    says(endless, only(endless._model.gac.template.tokenizer.encode("5")[0]))  # type: ignore[union-attr]
    for message in failures(endless.answer(queries)):
        assert "cut off at 16 tokens" in message and "5555" in message
    silent = load(done_rich=rich)
    end = silent._model.gac.template.tokenizer.convert_tokens_to_ids("<|im_end|>")  # type: ignore[union-attr]
    says(silent, only(end))
    failures(silent.answer(queries))


def test_numbers_that_are_none_never_become_a_score(load: Load, run: Frames) -> None:
    broken = load()
    says(broken, lambda logits: logits * float("nan"))
    failures(broken.answer([*done_queries(run[:2]), value_query(run[:3])]))


def test_out_of_memory_halves_the_call_and_changes_no_answer(load: Load, run: Frames) -> None:
    import torch

    queries = done_queries(run)
    expected = load().answer(queries)
    small = load()
    refused: list[int] = []

    def no_more_than_one_row(module: Any, inputs: Any) -> None:
        tokens = inputs[0].shape[:-1].numel()
        if tokens > 700:
            refused.append(tokens)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    language_model(small).model.norm.register_forward_pre_hook(no_more_than_one_row)
    assert small.answer(queries) == expected
    assert len(refused) == 2, "all six rows, and three of them"


def test_answers_are_the_same_after_sleep(load: Load, run: Frames) -> None:
    critic = load()
    before = critic.answer([value_query(run)])
    critic.offload()
    assert critic.answer([value_query(run)]) == before
