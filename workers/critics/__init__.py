"""Critics: what answers the queries. `Critic` is the protocol, `make_critic` makes the configured one."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from vlac_queue.config import VlacConfig
from vlac_queue.errors import ConfigError, CriticFailed
from vlac_queue.frames import Frames
from vlac_queue.messages import DoneVerdict, Kind, ValueVerdict


@dataclass(frozen=True)
class CriticQuery:
    """A query with its frames, as a critic gets it.

    Attributes:
        kind: "done" or "value".
        task: the task's text, as the rollout gave it.
        frames: uint8 (T,H,W,3), RGB: all of the episode for "value"; for "done" the one frame asked about, or
            all up to it where the critic's attribute `done_history` is true.
        frame: index within the episode of the last of `frames`.
        reference: uint8 (R,H,W,3), frames of a successful run, or None.
        reference_id: id of the reference (SHA-256), "" without one; for caches.
        done_threshold: a score above this (strictly) means done, 0..1.
        value_stride: distance in frames between the images of a pair in value lists; the last pair may be closer.
        token: made anew at each opening of an episode, whose frames only grow; "" where it is not known.
    """

    kind: Kind
    task: str
    frames: Frames = field(repr=False)
    frame: int
    reference: Frames | None = field(default=None, repr=False)
    reference_id: str = ""
    done_threshold: float = 0.9
    value_stride: int = 1
    token: str = ""


def compared(count: int, stride: int) -> list[int]:
    """Return the indices of a value list's frames: every stride-th of `count`, and the last, the outcome."""
    return [*range(0, count - 1, stride), count - 1]


def failed_pair(error: Exception, first: int, second: int) -> CriticFailed:
    """Return with what a value query fails because of one of its pairs."""
    return CriticFailed(f"comparing frames {first} and {second}: {error}", getattr(error, "traceback", ""))


CriticAnswer: TypeAlias = "DoneVerdict | ValueVerdict | Exception"


class Pair(NamedTuple):
    """Two frames of an episode that a critic compares: those `first` and `second` of a value query's."""

    query: CriticQuery
    first: int
    second: int


class AcceleratorLost(BaseException):
    """The process can't use its accelerator any more (a CUDA error that stays until the process ends).

    No `Exception`, so that nothing takes it for the failure of one query: the worker ends, and its jobs go to
    others, each at the cost of a retry, since one of them may be what did it.
    """


@runtime_checkable
class Critic(Protocol):
    """What a worker runs. One thread calls it; `load` comes first.

    A critic that judges done by earlier frames too has the attribute `done_history = True`.
    """

    def load(self) -> None:
        """Make it ready: weights, compiled kernels. Raise with a message that says what to do."""

    def answer(self, queries: Sequence[CriticQuery]) -> Sequence[CriticAnswer]:
        """Return one answer for each query, in order: a verdict, or the exception with which this query failed.

        An answer never depends on what else is in the batch. If this raises, the worker asks each query
        again on its own; `AcceleratorLost` ends the worker. After `offload`, it comes back by itself.
        """

    def offload(self) -> None:
        """Give accelerator memory back until `wake`, or the next `answer`."""

    def wake(self) -> None:
        """Take the accelerator memory again, ahead of the next `answer`."""

    def close(self) -> None:
        """Free everything."""


@runtime_checkable
class PairCritic(Critic, Protocol):
    """A critic whose value list is made of the scores of pairs of frames, each of which depends on the pair alone.

    Pairs of open episodes are scored while no query waits, and kept with the episode on Redis; a value query then
    takes what is missing, shared among workers. `answer` gets no value queries from a worker.

    Attributes:
        scored_by: a short text that stands for all that a score depends on besides the episode: weights, prompts,
            settings. Scores of another one are not used. Read after `load`.
    """

    scored_by: str

    def pairs_at_once(self, query: CriticQuery) -> int:
        """Return the most pairs of an episode in a call; the worker takes fewer where these take long."""

    def score(self, pairs: Sequence[Pair]) -> Sequence[float | Exception]:
        """Return the score of each pair, in order, or the exception with which this pair failed."""

    def value(self, scores: Sequence[float]) -> CriticAnswer:
        """Return the value list that an episode's scores make; `compared` says of which pairs."""


def make_critic(config: VlacConfig) -> Critic:
    """Return the critic that `config.critic` names, not loaded yet.

    Raises:
        ConfigError: there is no such class, or it is no critic.
    """
    name = {
        "reference": "workers.critics.reference:ReferenceCritic",
        "vlac": "workers.critics.vlac:VlacCritic",
    }.get(config.critic, config.critic)
    module_name, _, class_name = name.partition(":")
    try:
        critic = getattr(importlib.import_module(module_name), class_name)(config)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the critic {config.critic!r} can't be made: {error}; correct VLAC_CRITIC or install its package."
        ) from error
    if not isinstance(critic, Critic):
        raise ConfigError(f"{name} is no critic: it needs the methods load, answer, offload, wake and close.")
    return critic
