"""What programs say that start with a wrong user, or at what is no Redis: one sentence, and what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import Workers, until
from tests.security.conftest import Guarded
from tests.vlac_queue.test_faults import answering
from vlac_queue.server import RedisServer

_WORKER = ("vlac_queue.cli", "worker", "--critic", "reference")
_PLAIN = ("rq.cli", "worker", "vlac")


def refused(*command: str, **environ: str) -> str:
    """What a program that must not start prints on stderr."""
    ran = subprocess.run(
        [sys.executable, "-m", *command],
        env={"PATH": "", "RQ_WORKER_CLASS": "workers.CriticWorker", "VLAC_CRITIC": "reference", **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1 and "ERROR:root:" not in ran.stderr, ran.stderr
    return ran.stderr


def sentence(*command: str, **environ: str) -> str:
    stderr = refused(*command, **environ)
    assert stderr.count("\n") == 1, stderr
    return stderr


def test_a_worker_without_a_user_or_with_another_is_told_which_one_it_needs(guarded: Guarded) -> None:
    asks = "asks for a user and a password); set VLAC_REDIS_USERNAME and VLAC_REDIS_PASSWORD_FILE to vlac-worker"
    assert asks in sentence(*_WORKER, VLAC_REDIS_URL=guarded.server.url)
    assert asks in sentence(*_PLAIN, RQ_REDIS_URL=guarded.server.url)
    assert "VLAC_REDIS_PASSWORD_FILE to vlac-worker." in sentence(*_WORKER, **guarded.environ("vlac-rollout"))
    said = refused(*_WORKER, "-v", **guarded.environ("vlac-dashboard"))
    assert "VLAC_REDIS_PASSWORD_FILE to vlac-worker." in said and "Traceback" in said


def test_a_dashboard_without_a_user_shows_the_whole_sentence(guarded: Guarded) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "dashboards.live", "--once"],
        env={"PATH": "", "VLAC_REDIS_URL": guarded.server.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    shown = " ".join(ran.stdout.replace("│", " ").split())
    assert ran.returncode == 1
    assert "VLAC_REDIS_PASSWORD_FILE to vlac- dashboard, or mend redis_url." in shown


def test_a_worker_at_what_is_no_redis_or_without_its_certificate_says_so() -> None:
    with answering(b"HTTP/1.0 400 Bad Request\r\n\r\n") as port:
        for name, command in (("VLAC_REDIS_URL", _WORKER), ("RQ_REDIS_URL", _PLAIN)):
            assert "that is not Redis" in sentence(*command, **{name: f"redis://127.0.0.1:{port}"})
            said = sentence(*command, **{name: f"rediss://127.0.0.1:{port}?ssl_ca_certs=/none.crt"})
            assert "ssl_ca_certs" in said and "correct" in said


def test_a_worker_says_which_redis_it_serves_and_warns_of_another(server: RedisServer, workers: Workers) -> None:
    elsewhere = server.url.removesuffix("/0") + "/3"
    workers.start(VLAC_REDIS_URL=elsewhere.replace("//", "//:hush@"))
    until(lambda: "VLAC_REDIS_URL names" in workers.log.read_text())
    log = workers.log.read_text()
    assert f"serves queue vlac on {server.url}" in log and "hush" not in log
    assert f"VLAC_REDIS_URL names {elsewhere}, but RQ connects to {server.url}" in log
    workers.stop()
    workers.log.unlink()
    workers.start(VLAC_REDIS_URL=server.url.replace("127.0.0.1", "localhost"))
    until(lambda: "serves queue" in workers.log.read_text())
    assert "VLAC_REDIS_URL names" not in workers.log.read_text()


@pytest.mark.parametrize("order", ["sleep", "wake"])
def test_orders_to_workers_need_the_rollouts_user(order: str, guarded: Guarded, guarded_workers: Workers) -> None:
    guarded_workers.start(**guarded.worker_environ())
    said = refused("vlac_queue.cli", "workers", order, **guarded.environ("vlac-dashboard"))
    assert "VLAC_REDIS_PASSWORD_FILE to vlac-rollout." in said
