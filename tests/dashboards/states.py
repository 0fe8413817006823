"""Chosen states of a queue, for tests of what is said and shown of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dashboards.diagnosis import judge
from dashboards.history import Series
from dashboards.pages import View
from dashboards.snapshot import Look, Percentiles, Rates, Snapshot, Worker
from vlac_queue.records import Episode, Episodes, Failed, PlainWorker, QueueState, RedisState, Training

URL = "redis://gpu7:6379/0"
#: Noon of some day, in seconds since 1970.
AT = 1_767_268_800.0
GIB = 1 << 30

SERVER = RedisState("7.2.4", used_bytes=610 << 20, max_bytes=4 * GIB, policy="noeviction", clients=22)


def worker(number: int, **fields: Any) -> Worker:
    described: dict[str, Any] = {
        "name": f"gpu-{number}-4242-ab1{number}", "state": "busy", "host": f"gpu-{number}", "pid": 4242,
        "protocol": "2", "critic": "vlac", "model": "/models/VLAC", "prompt": "3fa9c1", "engine": "pt",
        "device": "cuda:0", "max_batch": 16, "taken": 2, "silent_s": 0.4, "uptime_s": 7200.0, "jobs": 1200,
        "queries": 123_456, "failures": 0, "batches": 9_000, "busy": 0.98, "queries_per_s": 42.5,
        "batches_per_s": 3.1, "mean_batch": 13.7, "rss_bytes": 3 * GIB, "accelerator_bytes": 6 * GIB,
        "accelerator_limit_bytes": 12 * GIB,
    }  # fmt: skip
    return Worker(**{**described, **fields})


LATENCY = {
    "waiting": Percentiles(10_200, 2.1, 3.9, 4.2),
    "decoding": Percentiles(10_200, 0.0042, 0.011, 0.024),
    "critic": Percentiles(10_200, 0.31, 0.38, 0.52),
    "answering": Percentiles(10_200, 0.0009, 0.0021, 0.006),
    "total": Percentiles(10_200, 2.45, 4.3, 4.8),
}
TRAINING = Training(
    episodes=1234, done=765, masked=4, reward_sum=954.0, values=465, value_sum=190.7,
    audit={"precision": 0.94, "recall": 0.88, "false_done_rate": 0.03, "done_delay_steps": 4.2}, audit_at=AT - 30,
)  # fmt: skip
EPISODES = Episodes(64, 131 << 20, 2 * GIB, tuple(
    Episode(f"train-{n:04d}", f"put the {thing} on the plate", round(95 / (n + 1), 1),
            round(3600 - 95 / (n + 1), 1), 12 + n, (2 + n) << 20, 12 + n)
    for n, thing in enumerate(("red mug", "white bowl", "black pan", "moka pot") * 10)
))  # fmt: skip
FAILED = tuple(
    Failed(AT - 7 * n, f"gpu-{n % 4}-4242-ab1{n % 4}", f"train-{n:04d}", "open the drawer", "done", 12 + n,
           f"ValueError: the model said 'banana{n}'")
    for n in range(12)
)  # fmt: skip

#: Four workers that can't keep up.
CRITIC_BOUND = Snapshot(
    time=AT,
    redis=SERVER,
    queue=QueueState(waiting=412, oldest_s=4.1, taken=8),
    episodes=EPISODES,
    workers=tuple(worker(n, busy=0.98 - n / 100) for n in range(4)),
    rates=Rates(170.0, 12.4, 182.0, 13.7, 0.98, 0.4, 10_200, 0),
    latency=LATENCY,
    training=TRAINING,
)
ROLLOUT_BOUND = replace(
    CRITIC_BOUND,
    queue=QueueState(),
    workers=tuple(worker(n, state="idle", busy=0.12, queries_per_s=5.0, taken=0) for n in range(4)),
    rates=Rates(20.0, 4.0, 20.0, 5.0, 0.12, 0.2, 1200, 0),
)
#: Something of everything, none of it good.
TROUBLED = replace(
    CRITIC_BOUND,
    redis=replace(SERVER, used_bytes=int(3.64 * GIB), policy="allkeys-lru"),
    queue=QueueState(waiting=10_412, oldest_s=65.0, taken=14, failed=3),
    workers=(
        worker(0, failures=31, last_error="ValueError: the model said 'banana0'", last_error_at=AT),
        worker(1, state="asleep", busy=0.0, queries_per_s=0.0, mean_batch=None, accelerator_bytes=0),
        worker(2, state="loading", busy=None, queries_per_s=None, mean_batch=None, queries=0, uptime_s=12.0),
        worker(3, state="lost", silent_s=17.0, busy=None, queries_per_s=None, mean_batch=None, taken=4),
    ),
    plain=(PlainWorker("plain-a", "gpu-5", 77, "idle"),),
    rates=Rates(42.5, 3.1, 90.0, 13.7, 0.98, 0.4, 2550, 31),
    failed=FAILED,
)
NO_WORKERS = replace(
    CRITIC_BOUND, workers=(), rates=Rates(), latency={}, training=Training(), queue=QueueState(3, 12.0),
    episodes=replace(EPISODES, open=3, untouched=EPISODES.untouched[:3]),
)  # fmt: skip
MANY_WORKERS = replace(CRITIC_BOUND, workers=tuple(worker(n, name=f"gpu-{n:03d}-4242") for n in range(200)))

LOOKS: Mapping[str, Look] = {
    "critic-bound": Look(AT, CRITIC_BOUND),
    "rollout-bound": Look(AT, ROLLOUT_BOUND),
    "troubled": Look(AT, TROUBLED),
    "no-workers": Look(AT, NO_WORKERS),
    "many-workers": Look(AT, MANY_WORKERS),
    "redis-away": Look(AT, None, f"Redis at {URL} can't be reached (Error 111 connecting to gpu7:6379)"),
}


def series() -> Series:
    """Five minutes of a queue that fills, is worked off, and fills again."""
    made = Series()
    for second in range(300):
        wave = 0.5 - 0.5 * math.cos(second / 40)
        made.waiting.append((AT - 300 + second, round(400 * wave)))
        made.queries.append((AT - 300 + second, 60 + 110 * min(1.0, 1.6 * wave)))
    return made


def view(look: str | Look = "critic-bound", **fields: Any) -> View:
    """A view of one of LOOKS."""
    shown = LOOKS[look] if isinstance(look, str) else look
    settings: dict[str, Any] = {"series": series(), "diagnoses": judge(shown, url=URL), **fields}
    return View(url=URL, queue="vlac", look=shown, **settings)
