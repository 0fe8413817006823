"""Updates of the policy, with the critics' memory given back."""

from __future__ import annotations

import pytest

from tests.conftest import Workers, until
from verl_adapter.settings import Training, read_node
from verl_adapter.updates import with_critics_asleep
from vlac_queue import ConfigError, CriticClient, NoWorkers


def test_critics_sleep_while_the_policy_is_updated(client: CriticClient, workers: Workers):
    workers.start("reference")
    until(workers.described)
    states = []

    def update(batch: int, *, extra: int) -> int:
        states.extend(worker["state"] for worker in workers.described())
        return batch + extra

    assert with_critics_asleep(update, client)(1, extra=2) == 3
    assert states == ["asleep"]
    assert workers.described()[0]["state"] != "asleep"


def test_an_update_that_fails_leaves_no_critic_asleep(client: CriticClient, workers: Workers):
    workers.start("reference")
    until(workers.described)

    def update():
        assert workers.described()[0]["state"] == "asleep"
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        with_critics_asleep(update, client)()
    assert workers.described()[0]["state"] != "asleep"


def test_without_workers_the_update_does_not_begin(client: CriticClient):
    with pytest.raises(NoWorkers):
        with_critics_asleep(lambda: pytest.fail("began"), client)()


def test_the_setting_is_of_training_and_not_of_the_queue():
    node = {"redis_url": "redis://gpu7:6379/0", "sleep_during_update": True}
    critic, training = read_node(node, {})
    assert training == Training(sleep_during_update=True) and critic.redis_url == node["redis_url"]
    with pytest.raises(ConfigError, match="true or false"):
        Training(sleep_during_update=1)
