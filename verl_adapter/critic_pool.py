"""`python -m verl_adapter.critic_pool`: workers of the queue as Ray actors, on the cluster that trains.

For who wants no second login to each host. Each actor keeps one `rq worker` process and its part of a GPU. The
actors are detached: they outlive this command and the training, until they are drained.

    python -m verl_adapter.critic_pool --num-workers 4 --gpus-per-worker 0.2      # four more
    python -m verl_adapter.critic_pool                                            # who is there
    python -m verl_adapter.critic_pool --drain 2                                  # two fewer

Redis and the critic's settings come from the environment of this command (`VLAC_*`), and go to the actors.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Mapping

import click
import ray
from ray.util import list_named_actors

from vlac_queue import CriticClient, CriticTimeout, NoWorkers, VlacConfig, VlacQueueError
from vlac_queue.control import end_worker, start_worker
from vlac_queue.credentials import VARIABLES as CREDENTIALS

#: Ray namespace of the actors.
NAMESPACE = "vlac-critic-pool"
#: Seconds for the workers to load their critics and listen.
_START_S = 900.0
#: Seconds for a worker to finish the batch at hand.
_DRAIN_S = 120.0


class CriticHost:
    """One worker of the queue, in a process of its own under this actor.

    The process inherits what Ray gave the actor (CUDA_VISIBLE_DEVICES). If it ends without being told to, so
    does the actor, and Ray starts another, on another node if need be.

    Args:
        name: of the worker, as `rq info` shows it.
        settings: environment variables `VLAC_*`.
    """

    def __init__(self, name: str, settings: Mapping[str, str]) -> None:
        # A name of its own for each try: the last one's may still be registered.
        self._name = f"{name}-{uuid.uuid4().hex[:4]}"
        self._config = VlacConfig.from_env(settings)
        self._told = threading.Event()
        # User and password are those of `settings`, whatever this node has.
        inherited = {name: value for name, value in os.environ.items() if name not in CREDENTIALS}
        environ = {**inherited, "VLAC_REDIS_URL": VlacConfig.redis_url, **settings}
        self._process = start_worker(self._config.queue, environ, "--name", self._name)
        threading.Thread(target=self._watch, daemon=True).start()

    def listens(self) -> str:
        """Waits until the worker listens.

        Returns:
            Its name.

        Raises:
            CriticTimeout: it does not; its log is in Ray's log of this actor.
            RedisUnavailable: Redis can't be reached.
        """
        deadline = time.monotonic() + _START_S
        with CriticClient(self._config) as client:
            while time.monotonic() < deadline:
                try:
                    if self._name in client.ping():
                        return self._name
                except NoWorkers:
                    pass
                time.sleep(0.2)
        raise CriticTimeout(f"worker {self._name} did not listen within {_START_S:.0f} s; see the actor's log.")

    def drain(self) -> None:
        """Lets the worker finish its batch and end; jobs that are not begun go back to the queue."""
        self._told.set()
        # Where it is killed, its jobs are answered by another worker.
        end_worker(self._process, _DRAIN_S)

    def _watch(self) -> None:
        code = self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            # RQ's scheduler is a child of it.
            os.killpg(self._process.pid, signal.SIGKILL)
        if not self._told.is_set():
            print(f"worker {self._name} ended with {code}; Ray starts another", file=sys.stderr, flush=True)
            os._exit(1)


def names() -> list[str]:
    """Names of the pool's actors, in the order in which they were started."""
    return sorted(
        each["name"] for each in list_named_actors(all_namespaces=True) if each["namespace"] == NAMESPACE
    )


def add(count: int, gpus: float, settings: Mapping[str, str]) -> list[str]:
    """Starts more workers, and waits until they listen; their names.

    Args:
        count: how many.
        gpus: part of a GPU for each; 0 for critics that need none.
        settings: environment variables `VLAC_*`.
    """
    actor = ray.remote(CriticHost)
    started = []
    for _ in range(count):
        # Sorts by time of start.
        name = f"critic-{time.time_ns():x}"
        options = {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "max_restarts": -1}
        started.append(actor.options(**options, num_gpus=gpus, num_cpus=1).remote(name, dict(settings)))
    listening: list[str] = ray.get([each.listens.remote() for each in started])
    return listening


def drain(count: int) -> list[str]:
    """Ends the workers that were started last; the names of their actors."""
    leaving = names()[-count:] if count else []
    actors = [ray.get_actor(name, namespace=NAMESPACE) for name in leaving]
    ray.get([each.drain.remote() for each in actors])
    for each in actors:
        ray.kill(each)
    return leaving


@click.command()
@click.option("--num-workers", default=0, type=click.IntRange(0), help="Workers to start, besides those there.")
@click.option(
    "--gpus-per-worker", default=0.2, show_default=True, type=click.FloatRange(0), help="Part of a GPU for each."
)
@click.option("--drain", "leaving", default=0, type=click.IntRange(0), help="Workers to end, the last ones first.")
def main(num_workers: int, gpus_per_worker: float, leaving: int) -> None:
    """Starts, lists and drains workers of the queue on the Ray cluster."""
    try:
        VlacConfig.from_env()
        ray.init(address="auto", namespace=NAMESPACE, log_to_driver=False)
        for name in drain(leaving):
            click.echo(f"drained {name}")
        settings = {name: value for name, value in os.environ.items() if name.startswith("VLAC_")}
        for name in add(num_workers, gpus_per_worker, settings):
            click.echo(f"listening: {name}")
    except VlacQueueError as error:
        raise click.ClickException(str(error)) from error
    except ConnectionError as error:
        raise click.ClickException(
            f"no Ray cluster was found ({error}); start one with `ray start --head`."
        ) from error
    click.echo(f"workers in the pool: {len(names())}")


if __name__ == "__main__":
    main()
