"""The one configuration of both sides: `VlacConfig`.

The file is long since most of it is the documentation of the settings, which commands and docs show.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from vlac_queue.credentials import VARIABLES as CREDENTIALS
from vlac_queue.credentials import with_credentials
from vlac_queue.errors import ConfigError
from vlac_queue.memory import allowed_bytes

#: Prefix of the environment variable of each field, e.g. VLAC_REDIS_URL.
ENV_PREFIX = "VLAC_"

#: What of a URL without "@" is surely no password: hosts with their ports, and a path of Redis or Sentinel.
_HOSTS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[\w.-]*)(?::\d*)?(?:,(?:\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::\d*)?)*")
_PATH = re.compile(r"(?:/[\w.-]*){0,2}")
_USER = re.compile(r"(?:[\w.+-]|%[0-9A-Fa-f]{2})*")
#: Options that may be shown.
_OPTION = re.compile(
    r"(?:ssl|socket)_(?!password)\w+|(?:sentinel_)?username|db|protocol|timeout|client_name|health_check_interval|"
    r"max_connections|retry_on_\w+"
)


def cut_by_password(url: str) -> bool:
    """Return whether a / ? or # of a user or password seems to end the host's part: an @ comes later."""
    scheme, _, authority, rest = _parts(url)
    if scheme == "unix" and not authority:  # without a user, and its path may hold anything
        return False
    return "@" in rest or (scheme == "unix" and not authority.endswith("@"))


def redact_url(url: str) -> str:
    """Return the URL with its password replaced by ***, fit for logs and messages.

    Takes whatever was typed: what can't be told from a password is hidden too.
    """
    scheme, separator, authority, rest = _parts(url)
    if cut_by_password(url):
        return f"{scheme}{separator}***"
    credentials, at, hosts = authority.rpartition("@")
    user, colon, _ = credentials.partition(":")
    path, mark, query = rest.partition("?")
    # Without an @, a password may stand where host and port should, or be all there is.
    usual = _HOSTS.fullmatch(hosts) and (scheme == "unix" or _PATH.fullmatch(path)) and (separator or ":" in hosts)
    if not at and not usual:
        return f"{scheme}{separator}***"
    options = "&".join(map(_shown_option, query.split("&")))
    user = user if separator and _USER.fullmatch(user) else "***"
    shown = f"{user}{':***' if colon and separator else ''}@" if at else ""
    return f"{scheme}{separator}{shown}{hosts}{path}{mark}{options}"


def _parts(url: str) -> tuple[str, str, str, str]:
    """Return scheme, "://", what names user and host, and the rest; no scheme where none can be told."""
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        scheme, separator, rest = "", "", url
    end = min((rest.find(mark) for mark in "/?#" if mark in rest), default=len(rest))
    return scheme, separator, rest[:end], rest[end:]


def _shown_option(option: str) -> str:
    name, equals, _ = option.partition("=")
    if _OPTION.fullmatch(name) or not option:
        return option
    return f"{name}=***" if equals and re.fullmatch(r"(?i)(?:\w+_)?password", name) else "***"


@dataclass(frozen=True)
class Check:
    """What a setting must be, beside its type.

    Attributes:
        must: as a sentence goes on after "must be".
        test: whether a value of the right type is so.
        choices: what is proposed where a value is near one of them.
    """

    must: str
    test: Callable[[Any], bool]
    choices: tuple[str, ...] = ()

    def setting(self, default: Any, doc: str) -> Any:
        """Return a field of `Settings`; `doc` is a sentence that says what it means, with its unit."""
        return field(default=default, metadata={"doc": doc, "check": self})


setting = Check("", lambda value: True).setting


def _one_of(*choices: str) -> Check:
    return Check(f"{', '.join(choices[:-1])} or {choices[-1]}", choices.__contains__, choices)


def _at_least(least: int, unit: str) -> Check:
    return Check(f"{least} or more {unit}".rstrip(), lambda value: value >= least)


def within(least: int, most: int, unit: str = "") -> Check:
    """Return the check of a number with two bounds, which are allowed."""
    return Check(f"within {least}..{most} {unit}".rstrip(), lambda value: least <= value <= most)


def _matching(pattern: str, must: str, *choices: str) -> Check:
    return Check(must, lambda text: re.fullmatch(pattern, text) is not None, choices)


_URL = _matching(
    r"(?s)((rediss?|rediss?\+sentinel|unix)://).*", "a redis://, rediss://, unix:// or redis+sentinel:// URL"
)
_QUEUE_NAME = _matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "1 to 64 letters, digits, '.', '_' or '-'")
_CRITIC = _matching(
    r"vlac|reference|[A-Za-z_][\w.]*:[A-Za-z_]\w*", "vlac, reference or package.module:Class", "vlac", "reference"
)
_JSON_OBJECT = Check('a JSON object, such as {"enforce_eager": true}', lambda text: _is_json_object(text))
_DEVICE = _matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N")

Made = TypeVar("Made", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """Fields made by `Check.setting`, checked when they are set.

    Raises:
        ConfigError: a value is of the wrong type or out of range.
    """

    def __post_init__(self) -> None:
        for spec in fields(self):
            # Hydra and the environment give 1 where 1.0 is meant; a bool is never meant as a number.
            value: Any = getattr(self, spec.name)
            kind: Any = str if spec.default is None else type(spec.default)
            if kind is float and type(value) is int:
                value = float(value) if abs(value) < 2**63 else math.inf
                object.__setattr__(self, spec.name, value)
            if value is None and spec.default is None:
                continue
            if type(value) is not kind:
                expected = "true or false" if kind is bool else kind.__name__ + " or None" * (spec.default is None)
                shown = type(value).__name__ if spec.name == "redis_url" else repr(value)
                raise ConfigError(f"{spec.name} must be {expected}, not {shown}.")
            check: Check = spec.metadata["check"]
            if (kind is float and not math.isfinite(value)) or not check.test(value):
                shown = redact_url(value) if spec.name == "redis_url" else repr(value)
                near = difflib.get_close_matches(str(value), check.choices, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"{spec.name} must be {check.must or 'finite'}, not {shown}.{hint}")

    @classmethod
    def from_mapping(cls: type[Made], values: Mapping[str, Any]) -> Made:
        """Return the settings of a mapping of field names to values, e.g. a hydra node.

        Raises:
            ConfigError: a name is unknown (the nearest right one is named), or a value is refused.
        """
        known = [spec.name for spec in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"unknown setting {name!r}; {_did_you_mean(str(name), known)}")
        return cls(**values)

    @classmethod
    def describe(cls) -> dict[str, str]:
        """Return each field's name and its documentation, in the order of declaration."""
        return {spec.name: spec.metadata["doc"] for spec in fields(cls)}


@dataclass(frozen=True, repr=False)
class VlacConfig(Settings):
    """Settings of rollouts and workers, from code, a mapping (hydra) or the environment (`VLAC_*`).

    A worker reads its own (critic, model_path, engine, max_batch, ...) from its environment; a rollout's
    settings travel with its queries. `VlacConfig.describe()` gives each field's documentation.
    """

    redis_url: str = _URL.setting(
        "redis://localhost:6379/0",
        "Redis to use: redis://, rediss:// (TLS), unix://, or by Sentinel, redis+sentinel://host:26379,host2:26379/"
        "mymaster/0; never shown with password.",
    )
    queue: str = _QUEUE_NAME.setting("vlac", "RQ queue that the workers listen on.")
    critic: str = _CRITIC.setting("vlac", "Critic that a worker runs: vlac, reference, or package.module:Class.")
    model_path: str = setting("", "Folder (or hub name) of the VLAC weights; needed by the critic vlac.")
    engine: str = _one_of("pt", "vllm").setting("pt", "Inference engine of the critic vlac: pt (torch) or vllm.")
    engine_args: str = _JSON_OBJECT.setting(
        "{}",
        "Further arguments of vLLM's engine, a JSON object of EngineArgs' names, such as "
        '{"max_num_batched_tokens": 8192}.',
    )
    device: str = _DEVICE.setting(
        "auto", "Device of the critic vlac: auto (the first GPU, else the CPU), cuda:N or cpu."
    )
    dtype: str = _one_of("auto", "bfloat16", "float16", "float32").setting(
        "auto", "Weights of the critic vlac: auto (bfloat16, float32 on a CPU), bfloat16, float16 or float32."
    )
    attention: str = _one_of("auto", "flash_attn", "eager").setting(
        "auto", "Attention of the critic vlac: auto (flash_attn where installed, else eager), flash_attn or eager."
    )
    done_by: str = _one_of("image", "reference", "goal").setting(
        "image",
        "What VLAC judges done by: image (the frame alone), reference (progress along the reference frames; "
        "slow, VLAC reasons in words) or goal (likeness to the reference's last frame).",
    )
    done_rich: bool = setting(True, "Whether VLAC's done scores weigh its likely digits; false: 0 or 1 alone.")
    value_rich: bool = setting(False, "Whether VLAC's pair scores weigh its likely numbers (VLAC's rich).")
    value_recursion: str = _one_of("default", "mix_f").setting(
        "default", "How VLAC's pair scores become values: default or mix_f (VLAC's value_simple)."
    )
    value_ahead: bool = setting(
        True,
        "Whether idle workers score pairs of open episodes ahead, so that a value list is there at once; for "
        "critics whose value lists are made of pair scores, such as vlac.",
    )
    ref_num: int = within(2, 11, "frames").setting(
        9, "Reference frames shown to VLAC, spread evenly over the run; 2..11."
    )
    max_images: int = _at_least(1, "images").setting(
        32,
        "Most images in one call of the model on torch, padding counted; halved when its memory runs out. vLLM "
        "chooses itself.",
    )
    done_threshold: float = within(0, 1).setting(0.9, "A score above this (strictly) means done; 0..1.")
    done_confirm: int = _at_least(1, "steps").setting(
        1,
        "Steps in a row at which the critic must say done until an episode ends, at the last of them; 1: the "
        "first done ends it.",
    )
    audit_share: float = within(0, 1).setting(
        0.05,
        "Share of the episodes found done of which the value list is asked too, to see whether the critic "
        "contradicts itself; nothing waits for it, and it changes no outcome. 0: none.",
    )
    audit_value: float = within(0, 100).setting(
        50.0, "A last value below this contradicts the critic's done; 0..100."
    )
    frame_stride: int = _at_least(0, "environment steps").setting(
        0, "Environment steps between frames sent within an action chunk; 0 sends the chunk's last frame only."
    )
    value_stride: int = _at_least(1, "frames").setting(
        1,
        "Distance in frames between the images of a pair in value lists (VLAC's skip); the last one counts too.",
    )
    reference: str | None = setting(
        None, "File (.npz with 'frames', or .npy) of a successful run, uint8 (T,H,W,3); optional."
    )
    reference_negatives: str = setting(
        "",
        "File (.npz with 'frames', perhaps 'task') of frames that look like the end and are not, for the critic "
        "reference; `vlac-queue export --format negatives` makes it.",
    )
    timeout_s: float = Check("above 0 seconds", lambda seconds: seconds > 0).setting(
        120.0, "Seconds until an unanswered query raises CriticTimeout."
    )
    patience_s: float = _at_least(0, "seconds").setting(
        60.0,
        "Seconds for which a rollout puts up with a Redis that is away or full, or with no worker left, once it "
        "had worked; at most timeout_s counts. 0 raises at once.",
    )
    batch_limit_s: float = _at_least(0, "seconds").setting(
        0.0,
        "Seconds that the critic may take for one batch until its worker counts as hung and starts anew; 0: half "
        "of the time that its queries have left, at least a quarter of timeout_s.",
    )
    retries: int = _at_least(0, "").setting(
        2, "Times a query is tried again: after a failure (on_failure=retry) or a worker's death."
    )
    on_failure: str = _one_of("raise", "mask", "retry").setting(
        "raise", "What a failed query does to its episode: raise, mask or retry (then raise)."
    )
    overlap: bool = setting(True, "Whether rollouts go on while the critic works; the outcomes are the same.")
    max_batch: int = within(1, 4096, "queries").setting(16, "Most queries in one call of the critic.")
    max_wait_ms: float = _at_least(0, "milliseconds").setting(
        5.0, "Milliseconds that a worker waits for a batch to fill."
    )
    gpu_memory_fraction: float = Check("above 0 and at most 1", lambda part: 0 < part <= 1).setting(
        0.15, "Part of the GPU's memory that the critic may use; above 0, up to 1."
    )
    idle_offload_s: float = _at_least(0, "seconds").setting(
        0.0, "Seconds without work until the weights leave the GPU; 0 keeps them there."
    )
    episode_ttl_s: int = _at_least(1, "seconds").setting(
        3600, "Seconds until the keys of an episode that nobody touches expire."
    )
    max_pending_bytes: int = _at_least(1, "bytes").setting(
        2 << 30, "Most bytes of encoded frames of all open episodes of the queue."
    )
    keep_frames_bytes: int = _at_least(0, "bytes").setting(
        512 << 20,
        "Most bytes of encoded frames of its open episodes that a rollout keeps, to push them again when Redis "
        "loses them; episodes beyond that fail then.",
    )
    history_bytes: int = _at_least(0, "bytes").setting(
        min(1 << 30, allowed_bytes() // 16),
        "Most bytes of main memory in which a worker keeps decoded frames of episodes and references, so that "
        "nothing is read and decoded twice; 0 keeps none. By default 1 GiB, or a sixteenth of the memory that the "
        "process may have, if that is less. Beside it stand the program itself (some 70 MB without a model), the "
        "frames of the batches at hand, and the critic.",
    )
    vision_cache_bytes: int = _at_least(0, "bytes").setting(
        min(4 << 30, allowed_bytes() // 4),
        "Most bytes of main memory in which the critic vlac on torch keeps what its vision tower made of frames, "
        "so that each passes through it once; about 1 MiB a frame; 0 keeps none. By default 4 GiB, or a "
        "quarter of the memory that the process may have, if that is less.",
    )
    decision_log: str = setting(
        "", "Folder in which rollouts log verdicts and frames (docs/decision-log.md); empty: none."
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **overrides: Any) -> VlacConfig:
        """Return the settings of the environment variables `VLAC_<FIELD>`; `overrides` that are not None win.

        Redis' user and password may stand beside the URL: VLAC_REDIS_USERNAME, and VLAC_REDIS_PASSWORD_FILE or
        VLAC_REDIS_PASSWORD (see `vlac_queue.credentials`).

        Raises:
            ConfigError: a `VLAC_*` variable names no field, its text is not a value of the field's type, or the
                password can't be had.
        """
        specs = {ENV_PREFIX + spec.name.upper(): spec for spec in fields(cls)}
        values: dict[str, Any] = {}
        for variable, text in environ.items():
            # VLAC_HOME is the user's checkout of VLAC, not a setting of ours.
            if not variable.startswith(ENV_PREFIX) or variable in ("VLAC_HOME", *CREDENTIALS):
                continue
            spec = specs.get(variable)
            if spec is None:
                raise ConfigError(
                    f"unknown environment variable {variable}; {_did_you_mean(variable, [*specs, *CREDENTIALS])}"
                )
            values[spec.name] = _parse(variable, text, spec.default)
        values.update({name: value for name, value in overrides.items() if value is not None})
        values["redis_url"] = with_credentials(values.get("redis_url", cls.redis_url), environ)
        return cls.from_mapping(values)

    def __repr__(self) -> str:
        shown = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        shown["redis_url"] = redact_url(self.redis_url)
        return f"VlacConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _parse(variable: str, text: str, default: Any) -> Any:
    try:
        if isinstance(default, bool):
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        if isinstance(default, int | float):
            return type(default)(text)
    except (KeyError, ValueError):
        kind = "true or false" if isinstance(default, bool) else f"a number ({type(default).__name__})"
        raise ConfigError(f"{variable} must be {kind}, not {text!r}.") from None
    return text


#: Settings of earlier versions, and what took their place.
_RENAMED = {"eager_value": "value_ahead"}


def _did_you_mean(name: str, known: list[str]) -> str:
    if renamed := _RENAMED.get(name.removeprefix(ENV_PREFIX).lower()):
        return f"it is {ENV_PREFIX + renamed.upper() if name.startswith(ENV_PREFIX) else renamed} now."
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"the settings are: {', '.join(known)}."
