"""`VlacConfig`: every setting documented, every mistake named, no password ever shown."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from vlac_queue import CriticClient, VlacConfig
from vlac_queue.config import redact_url
from vlac_queue.errors import ConfigError, VlacQueueError

_NAMES = [spec.name for spec in fields(VlacConfig)]


def test_every_setting_is_documented_in_order() -> None:
    described = VlacConfig.describe()
    assert list(described) == _NAMES
    for name, doc in described.items():
        assert len(doc) > 15, name
        assert doc.endswith("."), name


def test_the_defaults_are_valid_and_those_of_the_design() -> None:
    config = VlacConfig()
    assert (config.queue, config.critic, config.engine, config.done_threshold) == ("vlac", "vlac", "pt", 0.9)
    assert config.on_failure == "raise"
    assert VlacConfig.from_mapping({}) == VlacConfig.from_env({}) == config


def test_a_config_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        VlacConfig().queue = "other"  # type: ignore[misc]


# Unknown names.


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("redis_ur", "redis_url"),
        ("que", "queue"),
        ("model", "model_path"),
        ("done_treshold", "done_threshold"),
        ("on_failures", "on_failure"),
        ("max_wait", "max_wait_ms"),
        ("timeout", "timeout_s"),
        ("gpu_memory", "gpu_memory_fraction"),
        ("episode_ttl", "episode_ttl_s"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_right_one(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{wrong}'.*did you mean '{right}'\?"):
        VlacConfig.from_mapping({wrong: 1})
    variable, nearest = f"VLAC_{wrong.upper()}", f"VLAC_{right.upper()}"
    with pytest.raises(ConfigError, match=rf"{variable};.*did you mean '{nearest}'\?"):
        VlacConfig.from_env({variable: "1"})
    with pytest.raises(ConfigError, match=rf"did you mean '{right}'\?"):
        VlacConfig.from_env({}, **{wrong: 1})


def test_a_setting_of_an_earlier_version_is_refused_with_its_new_name() -> None:
    with pytest.raises(ConfigError, match="'eager_value'; it is value_ahead now"):
        VlacConfig.from_mapping({"eager_value": True})
    with pytest.raises(ConfigError, match="VLAC_EAGER_VALUE; it is VLAC_VALUE_AHEAD now"):
        VlacConfig.from_env({"VLAC_EAGER_VALUE": "true"})


def test_a_name_like_no_other_is_answered_with_all_of_them() -> None:
    with pytest.raises(ConfigError, match="the settings are: redis_url, queue") as caught:
        VlacConfig.from_mapping({"zzzzzz": 1})
    assert all(name in str(caught.value) for name in _NAMES)


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown setting 7"):
        VlacConfig.from_mapping({7: 1})  # type: ignore[dict-item]


# The environment.


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("VLAC_REDIS_URL", "rediss://example:6380/2", "rediss://example:6380/2"),
        ("VLAC_QUEUE", "vlac-2.test", "vlac-2.test"),
        ("VLAC_CRITIC", "my_critics.small:Critic", "my_critics.small:Critic"),
        ("VLAC_REFERENCE", "/data/run.npz", "/data/run.npz"),
        ("VLAC_ENGINE", "vllm", "vllm"),
        ("VLAC_DONE_THRESHOLD", "0.5", 0.5),
        ("VLAC_DONE_THRESHOLD", "1", 1.0),
        ("VLAC_TIMEOUT_S", "1e2", 100.0),
        ("VLAC_MAX_BATCH", "32", 32),
        ("VLAC_MAX_PENDING_BYTES", "8589934592", 8 << 30),
        ("VLAC_OVERLAP", "false", False),
        ("VLAC_OVERLAP", "0", False),
        ("VLAC_OVERLAP", "No", False),
        ("VLAC_OVERLAP", "TRUE", True),
        ("VLAC_OVERLAP", "yes", True),
        ("VLAC_OVERLAP", "1", True),
    ],
)
def test_a_variable_is_read_as_its_settings_type(variable: str, text: str, expected: object) -> None:
    config = VlacConfig.from_env({variable: text})
    value = getattr(config, variable.removeprefix("VLAC_").lower())
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("VLAC_MAX_BATCH", "many", r"a number \(int\)"),
        ("VLAC_MAX_BATCH", "1.5", r"a number \(int\)"),
        ("VLAC_MAX_BATCH", "", r"a number \(int\)"),
        ("VLAC_RETRIES", "True", r"a number \(int\)"),
        ("VLAC_TIMEOUT_S", "2 minutes", r"a number \(float\)"),
        ("VLAC_OVERLAP", "maybe", "true or false"),
        ("VLAC_OVERLAP", "", "true or false"),
    ],
)
def test_a_variable_that_is_no_value_is_refused_by_name(variable: str, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"{variable} must be {expected}, not '{text}'"):
        VlacConfig.from_env({variable: text})


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLAC_QUEUE", "from-env")
    assert VlacConfig.from_env().queue == "from-env"
    assert CriticClient().config.queue == "from-env"


def test_overrides_win_and_none_leaves_a_variable_alone() -> None:
    config = VlacConfig.from_env({"VLAC_QUEUE": "a", "VLAC_MAX_BATCH": "3"}, queue="b", max_batch=None)
    assert (config.queue, config.max_batch) == ("b", 3)


def test_the_users_checkout_and_others_variables_are_none_of_ours() -> None:
    environ = {"VLAC_HOME": "/opt/VLAC", "PATH": "/bin", "RQ_REDIS_URL": "redis://other", "XVLAC_QUEUE": "x"}
    assert VlacConfig.from_env(environ) == VlacConfig()


# Values.


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("redis_url", ["redis://h", "rediss://h:1/2", "unix:///tmp/r.sock"], ["http://h", "localhost:6379", ""]),
        ("queue", ["v", "a.b-c_D9", "x" * 64], ["", "a:b", "a b", "-a", "x" * 65, "a\n"]),
        ("critic", ["vlac", "reference", "pkg.mod:Class"], ["", "Vlac", "pkg.mod", "pkg:mod:Class", "os; ls:A"]),
        ("engine", ["pt", "vllm"], ["", "PT", "torch"]),
        ("on_failure", ["raise", "mask", "retry"], ["", "ignore"]),
        ("done_threshold", [0, 1, 0.5], [-0.01, 1.01, float("nan"), float("inf")]),
        ("frame_stride", [0, 7], [-1]),
        ("value_stride", [1, 9], [0, -1]),
        ("timeout_s", [0.001, 1e6], [0, -1.0, float("nan"), float("inf")]),
        ("retries", [0, 100], [-1]),
        ("max_batch", [1, 4096], [0, 4097]),
        ("max_wait_ms", [0, 0.5], [-0.1, float("inf")]),
        ("gpu_memory_fraction", [0.01, 1], [0, 1.01, float("nan")]),
        ("idle_offload_s", [0, 60], [-1, float("inf")]),
        ("episode_ttl_s", [1, 86400], [0]),
        ("max_pending_bytes", [1, 1 << 40], [0]),
    ],
)
def test_values_have_ranges(name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert getattr(VlacConfig(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(ConfigError, match=f"^{name} must be "):
            VlacConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("queue", 3),
        ("queue", None),
        ("max_batch", 16.0),
        ("max_batch", "16"),
        ("max_batch", True),
        ("max_batch", None),
        ("timeout_s", True),
        ("timeout_s", "120"),
        ("overlap", 1),
        ("overlap", "false"),
        ("reference", 5),
    ],
)
def test_values_have_types(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be .*, not {value!r}"):
        VlacConfig(**{name: value})  # type: ignore[arg-type]


def test_a_whole_number_serves_as_seconds() -> None:
    config = VlacConfig(timeout_s=30)
    assert config.timeout_s == 30.0
    assert isinstance(config.timeout_s, float)


def test_a_misspelt_choice_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'vllm'"):
        VlacConfig(engine="vlm")
    with pytest.raises(ConfigError, match="Did you mean 'reference'"):
        VlacConfig(critic="refernce?")


def test_a_config_error_is_one_of_ours_and_a_value_error() -> None:
    with pytest.raises(VlacQueueError):
        VlacConfig(max_batch=0)
    with pytest.raises(ValueError, match="max_batch"):
        VlacConfig(max_batch=0)


def test_an_int_beyond_any_float_is_refused() -> None:
    with pytest.raises(ConfigError):
        VlacConfig(timeout_s=10**400)


# Passwords.

_SECRET = "s3cr3t-pw"
_URLS = [
    (f"redis://:{_SECRET}@example:6379/0", "redis://:***@example:6379/0"),
    (f"redis://user:{_SECRET}@example:6379/0", "redis://user:***@example:6379/0"),
    (f"rediss://user:{_SECRET}@example/1", "rediss://user:***@example/1"),
    (f"redis://user:{_SECRET}%40%3A@[::1]:6379/0", "redis://user:***@[::1]:6379/0"),
    (f"redis://example/0?password={_SECRET}", "redis://example/0?password=***"),
    (f"unix:///run/redis.sock?password={_SECRET}&db=1", "/run/redis.sock?password=***&db=1"),
    (f"unix:///run/redis.sock?db=1&Password={_SECRET}", "/run/redis.sock?db=1&Password=***"),
    (f"unix://user:{_SECRET}@/run/redis.sock", "unix://user:***@/run/redis.sock"),
]


@pytest.mark.parametrize(("url", "shown"), _URLS)
def test_a_password_is_shown_as_stars(url: str, shown: str) -> None:
    assert redact_url(url).endswith(shown)
    config = VlacConfig(redis_url=url)
    assert config.redis_url == url
    assert shown in repr(config)
    assert _SECRET not in repr(config)
    assert _SECRET not in str(config)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379/0",
        "rediss://h:1/2?db=3",
        "redis://user@h/1",
        "unix:///run/a@b.sock?db=1",
        "localhost:6379",
        "redis+sentinel://gpu1,[::1]:26380/mymaster/0?socket_timeout=3",
    ],
)
def test_a_url_without_password_is_shown_as_it_is(url: str) -> None:
    assert redact_url(url) == url


@pytest.mark.parametrize(
    "url", [url.replace("redis:", "http:", 1) for url, _ in _URLS if url.startswith("redis:")]
)
def test_a_refused_url_is_shown_without_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"redis://, rediss://, unix:// or redis\+sentinel:// URL") as caught:
        VlacConfig(redis_url=url)
    assert _SECRET not in str(caught.value)


def test_an_unusable_url_is_shown_without_password() -> None:
    with pytest.raises(ConfigError, match="can't be used") as caught:
        CriticClient(VlacConfig(redis_url=f"redis://:{_SECRET}@example:port/0"))
    assert _SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"user:{_SECRET}@example:6379",  # the scheme forgotten: the message shows all of it
        f":{_SECRET}@example:6379/0",
        f"redis://:a#{_SECRET}@example:6379/0",  # reserved characters not percent-encoded
        f"redis://:a/{_SECRET}@example:6379/0",
        f"redis://:a?{_SECRET}@example:6379/0",
        f"redis://:a[{_SECRET}@example:6379/0",  # urlsplit raises ValueError out of repr
        f"redis://:{_SECRET}@example:6379/0".encode(),  # not a text: shown with repr
    ],
    ids=["no scheme", "no scheme or user", "hash", "slash", "question mark", "bracket", "bytes"],
)
def test_a_password_in_a_url_gone_wrong_is_not_shown(url: Any) -> None:
    try:
        shown = repr(VlacConfig(redis_url=url))
    except ConfigError as error:
        shown = str(error)
    assert _SECRET not in shown
