"""From the client through Redis and a real `rq worker` to the model and back."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from tests.real_vlac.conftest import ROOT, TASK, pictures
from vlac_queue import CriticClient, VlacConfig
from vlac_queue.control import live_workers, worker_command
from vlac_queue.errors import CriticFailed
from vlac_queue.frames import Frames
from vlac_queue.keys import Keys
from vlac_queue.server import RedisServer


@contextmanager
def worker(url: str, log: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that listens, killed at the end with what it has started."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("VLAC_", "RQ_"))}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {**inherited, "RQ_REDIS_URL": url, "VLAC_CRITIC": "vlac", "PYTHONPATH": path, **settings}
    with log.open("wb") as file, redis.Redis.from_url(url) as connection:
        before = live_workers(connection, Keys("vlac"))
        process = subprocess.Popen(worker_command("vlac"), env=variables, stdout=file, stderr=file)
        try:
            deadline = time.monotonic() + 60
            while len(live_workers(connection, Keys("vlac"))) == len(before):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield process
        finally:
            if process.poll() is None:
                for each in (*psutil.Process(process.pid).children(recursive=True), process):
                    each.kill()
            process.wait()


@pytest.fixture
def settings(served: dict[str, Any]) -> dict[str, str]:
    """The worker's variables."""
    return {
        **{f"VLAC_{name.upper()}": text for name, text in served.items()},
        "VLAC_REF_NUM": "3",
        "VLAC_DONE_BY": "reference",
    }


@pytest.fixture(params=["workers.CriticWorker", None], ids=["CriticWorker", "forking"])
def client(request: pytest.FixtureRequest, settings: dict[str, str], tmp_path: Path) -> Iterator[CriticClient]:
    """A client with one worker that serves the tiny checkpoint."""
    kind = {"RQ_WORKER_CLASS": request.param} if request.param else {}
    with (
        RedisServer() as server,
        worker(server.url, tmp_path / "worker.log", **settings, **kind),
        CriticClient(VlacConfig(redis_url=server.url, timeout_s=100)) as made,
    ):
        yield made


def test_answers_through_the_queue_are_vlacs_own(
    client: CriticClient, gac: Any, run: Frames, reference: Frames
) -> None:
    done = gac.get_trajectory_done(task=TASK, image_list=pictures(run), rich=True)
    critics, values = gac.get_trajectory_critic(task=TASK, image_list=pictures(run))
    by_reference = gac.get_trajectory_done(
        task=TASK, image_list=pictures(run), ref_image_list=pictures(reference), ref_num=3, rich=True
    )
    with (
        client.episode(task=TASK) as plain,
        client.episode(task=TASK, reference=reference) as compared,
        client.episode(task="<image>") as markup,
    ):
        asked = []
        for frame in run:
            client.push_many([(plain, frame), (compared, frame), (markup, frame)])
            asked.append(client.ask_done_many([plain, compared, markup]))
        verdict = plain.ask_value().result()
        assert [one.result().score for one, _, _ in asked] == done
        assert [one.result().score for _, one, _ in asked] == by_reference
        for _, _, one in asked:
            with pytest.raises(CriticFailed, match="plain words"):
                one.result()
    assert (list(verdict.critics), list(verdict.values)) == (critics, values)


def test_a_killed_worker_takes_its_engine_with_it_and_another_answers(
    settings: dict[str, str], gac: Any, run: Frames, tmp_path: Path
) -> None:
    settings = {**settings, "RQ_WORKER_CLASS": "workers.CriticWorker", "VLAC_VALUE_AHEAD": "false"}
    _, values = gac.get_trajectory_critic(task=TASK, image_list=pictures(run))
    with (
        RedisServer() as server,
        worker(server.url, tmp_path / "first.log", **settings) as first,
        CriticClient(VlacConfig(redis_url=server.url, timeout_s=100)) as client,
        client.episode(task=TASK) as episode,
    ):
        episode.push(run)
        episode.ask_done().result()
        started = psutil.Process(first.pid).children(recursive=True)
        os.kill(first.pid, signal.SIGSTOP)
        pending = episode.ask_value()
        first.kill()
        assert not psutil.wait_procs(started, timeout=20)[1]
        with worker(server.url, tmp_path / "second.log", **settings) as second:
            assert list(pending.result().values) == values
            second.terminate()
            assert second.wait(timeout=30) == 0


def test_a_worker_that_lost_its_accelerator_begins_anew(
    settings: dict[str, str], gac: Any, run: Frames, tmp_path: Path
) -> None:
    lossy = {"RQ_WORKER_CLASS": "workers.CriticWorker", "VLAC_CRITIC": "tests.real_vlac.losing:LosesOnce"}
    critics, _ = gac.get_trajectory_critic(task=TASK, image_list=pictures(run))
    with (
        RedisServer() as server,
        worker(server.url, tmp_path / "worker.log", **{**settings, **lossy}) as process,
        CriticClient(VlacConfig(redis_url=server.url, timeout_s=100)) as client,
        client.episode(task=TASK) as episode,
    ):
        episode.push(run)
        assert list(episode.ask_value().result().critics) == critics
        assert process.poll() is None, "it goes on under its own process id"
    assert "AcceleratorLost" in (tmp_path / "worker.log").read_text()
