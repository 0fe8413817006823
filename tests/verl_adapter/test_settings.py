"""The hydra node `vlac` and what is checked before training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import verl_adapter
from verl_adapter.settings import SETTINGS, Training, read_node, render
from verl_adapter.startup import check_overrides, check_queue, check_training, evaluates_only
from vlac_queue import ConfigError, CriticTimeout, NoWorkers, RedisUnavailable, VlacConfig
from vlac_queue.server import free_port

URL = "redis://gpu7:6379/0"


def test_the_checked_in_config_is_what_the_settings_say():
    path = Path(verl_adapter.__file__).parent / "config" / "ppo_vlac.yaml"
    assert path.read_text() == render(), "run: python -m verl_adapter.settings > verl_adapter/config/ppo_vlac.yaml"


def test_every_setting_of_the_queue_is_in_the_node():
    for name, doc in VlacConfig.describe().items():
        assert SETTINGS[name] == doc and f"\n  {name}: " in render()


def test_settings_of_queue_and_groups_share_the_node():
    node = {"redis_url": URL, "done_threshold": 0.8, "min_group_spread": 0.1}
    assert read_node(node, {}) == (VlacConfig(redis_url=URL, done_threshold=0.8), Training(min_group_spread=0.1))


def test_without_redis_it_says_what_to_set():
    with pytest.raises(ConfigError, match=r"vlac\.redis_url=redis://host:6379/0(.|\n)*val_before_train=True"):
        read_node({"redis_url": None}, {})


def test_the_environment_names_redis_where_the_node_does_not():
    environ = {"VLAC_REDIS_URL": "redis://:secret@gpu8:6379/0"}
    assert read_node({"redis_url": None}, environ)[0].redis_url == environ["VLAC_REDIS_URL"]
    assert read_node({"redis_url": URL}, environ)[0].redis_url == URL


def test_the_password_joins_the_url_where_the_queue_is_used():
    environ = {"VLAC_REDIS_USERNAME": "vlac-rollout", "VLAC_REDIS_PASSWORD": "secret"}
    critic, _ = read_node({"redis_url": "redis://gpu8/0"}, environ)
    assert critic.redis_url == "redis://vlac-rollout:secret@gpu8/0"


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_a_password_on_the_command_line_is_refused_and_not_shown(quote):
    with pytest.raises(ConfigError, match="export VLAC_REDIS_PASSWORD_FILE=FILE") as caught:
        check_overrides([f"vlac.redis_url={quote}redis://:secret@gpu8:6379/0{quote}"])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
def test_a_misspelt_override_is_refused_with_the_nearest(prefix):
    with pytest.raises(ConfigError, match=r"did you mean vlac\.redis_url\?"):
        check_overrides(["trainer.nnodes=1", f"{prefix}vlac.redis_ulr={URL}"])


def test_right_overrides_pass():
    check_overrides(["--cfg", "job", f"vlac.redis_url={URL}", "++vlac.overlap=False", "data.vlac.x=1"])


def test_a_misspelt_name_in_the_node_is_refused():
    with pytest.raises(ConfigError, match=r"did you mean vlac\.min_group_spread\?"):
        read_node({"redis_url": URL, "min_group_spred": 0.1})


@pytest.mark.parametrize(
    "bad", [{"min_group_spread": -0.1}, {"reward_upper_bound": 2}, {"reward_lower_bound": True}]
)
def test_group_settings_out_of_range_are_refused(bad: dict[str, Any]):
    (name,) = bad
    with pytest.raises(ConfigError, match=name):
        Training(**bad)


def test_bounds_must_be_in_order():
    with pytest.raises(ConfigError, match="must not exceed"):
        Training(reward_lower_bound=0.6, reward_upper_bound=0.5)


def config(**changes: Any) -> Any:
    """Of upstream's config what the checks look at; changes are `section__name`."""
    sections: dict[str, dict[str, Any]] = {
        "trainer": {"val_only": False, "val_before_train": True},
        "algorithm": {"adv_estimator": "grpo"},
        "data": {
            "filter_accuracy": True,
            "filter_truncated": False,
            "n_samples": 8,
            "task_suite_name": "libero_10",
        },
    }
    vlac = {"redis_url": URL}
    for name, value in changes.items():
        section, _, field = name.partition("__")
        (vlac if section == "vlac" else sections[section])[field] = value
    return SimpleNamespace(vlac=vlac, **{name: SimpleNamespace(**values) for name, values in sections.items()})


def test_the_example_scripts_config_trains():
    assert check_training(config()) == VlacConfig(redis_url=URL)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data__filter_accuracy": False}, "data.filter_accuracy=True"),
        ({"data__filter_truncated": True}, "data.filter_truncated=False"),
        ({"data__n_samples": 1}, "data.n_samples"),
        ({"algorithm__adv_estimator": "rloo"}, "algorithm.adv_estimator=grpo"),
        ({"data__task_suite_name": "robotwin2_lift_pot", "vlac__frame_stride": 4}, "vlac.frame_stride=0"),
        ({"vlac__on_failure": "ignore"}, "on_failure"),
        ({"vlac__min_group_spread": 3}, "min_group_spread"),
    ],
)
def test_what_training_would_stumble_over_is_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        check_training(config(**changes))


@pytest.mark.parametrize(
    ("val_only", "val_before_train", "expected"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_val_only_alone_still_trains(val_only, val_before_train, expected):
    assert (
        evaluates_only(config(trainer__val_only=val_only, trainer__val_before_train=val_before_train)) is expected
    )


def test_the_queue_is_asked_before_training(redis_url):
    check_queue(VlacConfig(redis_url=redis_url, timeout_s=30))


def test_a_queue_without_workers_is_known_at_once(redis_url):
    with pytest.raises(NoWorkers, match="vlac-queue worker --queue nobody"):
        check_queue(VlacConfig(redis_url=redis_url, queue="nobody", timeout_s=0.5))


def test_redis_that_is_down_is_known_at_once():
    with pytest.raises(RedisUnavailable) as raised:
        check_queue(VlacConfig(redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    assert not isinstance(raised.value, CriticTimeout)
