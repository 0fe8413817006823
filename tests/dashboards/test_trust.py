"""A critic that is fooled, as a dashboard sees it come: a scripted critic contradicts itself, or the truth it."""

from __future__ import annotations

import random
from dataclasses import replace

from dashboards.diagnosis import judge
from dashboards.snapshot import Look, Training
from dashboards.trust import Stretches
from tests.dashboards.states import AT, ROLLOUT_BOUND
from tests.vlac_queue.scripted import ScriptedClient
from tests.vlac_queue.test_gate import play, script


def batch(before: Training, done: int, contradicted: int, **audit: float) -> Training:
    """32 more episodes, of which so many were found done; the first 10 of these were audited."""
    return Training(
        episodes=before.episodes + 32, done=before.done + done, audited=before.audited + 10,
        contradicted=before.contradicted + contradicted, audit=audit, audit_at=before.audit_at + bool(audit),
    )  # fmt: skip


def seen(*batches: tuple[int, int]) -> list[str]:
    """What is said after each batch of (done, contradicted)."""
    stretches, training = Stretches(), Training()
    stretches.add(training)
    said = []
    for done, contradicted in batches:
        training = batch(training, done, contradicted)
        said.append(stretches.add(training))
        assert stretches.add(training) == said[-1]  # looked at again, nothing new
    return said


def test_contradictions_that_rise_with_the_done_rate_are_said() -> None:
    *before, last = seen((12, 1), (16, 1), (30, 8))
    assert before == ["", ""] and "80% of these are contradicted by the critic's own value" in last
    assert seen((12, 1), (16, 1), (30, 0)) == ["", "", ""]


def test_the_simulators_truth_is_a_sign_too() -> None:
    stretches = Stretches()
    first = batch(Training(), 16, 0, done_rate=0.5, precision=0.9)
    assert stretches.add(first) == ""
    assert "90% of these are false by the simulator" in stretches.add(
        batch(first, 32, 0, done_rate=0.97, precision=0.1)
    )


def test_another_redis_begins_anew() -> None:
    stretches, training = Stretches(), batch(Training(), 30, 1)
    stretches.add(training)
    assert stretches.add(Training(episodes=5, done=5, audited=5, contradicted=5)) == ""


def test_the_dashboard_says_where_to_read_on() -> None:
    worst = judge(Look(AT, replace(ROLLOUT_BOUND, fooled="97% are found done")))[0]
    assert (worst.severity, worst.kind) == ("bad", "critic-fooled")
    assert "97% are found done" in worst.sentence and "docs/trust.md" in worst.sentence


class AtOnce(random.Random):
    """Has all answers come at the first look."""

    def randint(self, a: int, b: int) -> int:
        return b


def test_from_a_scripted_critic_to_the_dashboard() -> None:
    """Its dones are honest at first; then all are done at once, and the values of most are low."""
    stretches, training = Stretches(), Training()
    stretches.add(training)
    said = []
    for done, low in ((8, 1), (20, 18)):
        honest = [script("..d", (0.0, 95.0))] * (done - low)
        fooled = [script("..d", (0.0, 10.0))] * low
        never = [script("...", (0.0, 40.0))] * (20 - done)
        client = ScriptedClient([*honest, *fooled, *never], AtOnce(), audit_share=1.0)
        outcomes = play(client, 20, 3, overlap=False)
        known = [outcome.contradicted for outcome in outcomes if outcome.contradicted is not None]
        training = Training(
            episodes=training.episodes + 20, done=training.done + sum(outcome.done for outcome in outcomes),
            audited=training.audited + len(known), contradicted=training.contradicted + sum(known),
        )  # fmt: skip
        said.append(stretches.add(training))
    assert said[0] == "" and "90% of these are contradicted" in said[1]
