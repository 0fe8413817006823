"""From the client through Redis and a real `rq worker` to the model and back."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.real_vlac.conftest import ROOT, TASK, pictures
from vlac_queue import CriticClient, VlacConfig
from vlac_queue.control import live_workers, worker_command
from vlac_queue.errors import CriticFailed
from vlac_queue.frames import Frames
from vlac_queue.keys import Keys
from vlac_queue.server import RedisServer


@pytest.fixture(params=["workers.CriticWorker", None], ids=["CriticWorker", "forking"])
def client(request: pytest.FixtureRequest, served: dict[str, Any], tmp_path: Path) -> Iterator[CriticClient]:
    """A client with one worker that serves the tiny checkpoint."""
    with RedisServer() as server, open(tmp_path / "worker.log", "wb") as log:
        variables = {
            **{name: text for name, text in os.environ.items() if not name.startswith(("VLAC_", "RQ_"))},
            "RQ_REDIS_URL": server.url,
            "VLAC_CRITIC": "vlac",
            **{f"VLAC_{name.upper()}": text for name, text in served.items()},
            "VLAC_REF_NUM": "3",
            "VLAC_DONE_BY": "reference",
            "VLAC_EAGER_VALUE": "true",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            **({"RQ_WORKER_CLASS": request.param} if request.param else {}),
        }
        command = worker_command("vlac")
        worker = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        try:
            with CriticClient(VlacConfig(redis_url=server.url, timeout_s=100)) as made:
                deadline = time.monotonic() + 60
                while not live_workers(server_connection(server), Keys("vlac")):
                    assert worker.poll() is None, (tmp_path / "worker.log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                yield made
        finally:
            for process in (*psutil.Process(worker.pid).children(recursive=True), worker):
                process.kill()
            worker.wait()


def server_connection(server: RedisServer) -> Any:
    import redis

    return redis.Redis.from_url(server.url)


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
