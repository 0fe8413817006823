"""A password is used everywhere and seen nowhere: not in what is printed or logged, not in `ps`, not in errors."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import psutil
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.conftest import ROOT, until
from vlac_queue import CriticClient, RedisDenied, RedisUnavailable, VlacConfig, VlacQueueError
from vlac_queue.config import redact_url
from vlac_queue.connection import connect
from vlac_queue.credentials import with_credentials
from vlac_queue.server import RedisServer

#: With what a URL must quote, so that it is looked for in both spellings.
_PASSWORD = "hush@secret/word"
_SPELLINGS = (_PASSWORD, "hush%40secret%2Fword", "hush")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer("--requirepass", _PASSWORD) as started:
        yield started


@pytest.fixture(params=["URL", pytest.param("file", marks=pytest.mark.slow)])
def environ(request: pytest.FixtureRequest, server: RedisServer, tmp_path: Path) -> dict[str, str]:
    """What gives programs the password, in each of the ways."""
    file = tmp_path / "redis-password"
    file.write_text(_PASSWORD)
    file.chmod(0o600)
    given = {"VLAC_REDIS_PASSWORD_FILE": str(file)} if request.param == "file" else {}
    url = server.url.replace("://", f"://:{_SPELLINGS[1]}@") if request.param == "URL" else server.url
    return {**os.environ, "PYTHONPATH": str(ROOT), "VLAC_REDIS_URL": url, "VLAC_CRITIC": "reference", **given}


class CommandLines:
    """All command lines of this process' descendants, as `ps` shows them to everybody."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> CommandLines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                try:
                    self.seen.add(" ".join(process.cmdline()))
                except psutil.Error:
                    continue


def settings_of(environ: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith("VLAC_")}


def hidden(text: str) -> None:
    assert not any(spelling in text for spelling in _SPELLINGS), text


@pytest.mark.slow
def test_programs_show_it_nowhere(environ: dict[str, str], tmp_path: Path) -> None:
    def ran(*command: str, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            env={**environ, **more}, cwd=tmp_path, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        return done.stdout + done.stderr

    away = f"redis://:{_SPELLINGS[1]}@127.0.0.1:1/0"
    log = tmp_path / "worker.log"
    with CommandLines() as lines:
        with open(log, "wb") as out:
            command = [sys.executable, "-m", "vlac_queue.cli", "worker", "--", "--logging_level", "DEBUG"]
            worker = subprocess.Popen(command, env=environ, cwd=tmp_path, stdout=out, stderr=out)
        try:
            until(lambda: "loaded in" in log.read_text() or worker.poll() is not None)
            said = [
                ran("dashboards.live", "--once", "--json"),
                ran("vlac_queue.cli", "workers", "list"),
                ran("vlac_queue.cli", "doctor", "--host", "rollout"),
                ran("rq.cli", "info", RQ_CONFIG="vlac_queue.rq_settings"),
                # A server that is away.
                ran("dashboards.live", "--once", VLAC_REDIS_URL=away),
                ran("vlac_queue.cli", "doctor", VLAC_REDIS_URL=away),
            ]
            assert CriticClient(VlacConfig.from_env(settings_of(environ))).ping()
        finally:
            worker.terminate()
            worker.wait(30)
    assert '"reference"' in said[0] and "reference" in said[1], said
    for text in (*said, log.read_text(), *lines.seen):
        hidden(text)
    assert any("rq.cli import main" in line for line in lines.seen)


def test_the_critic_pools_workers_have_no_password_of_a_file(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What it needs Ray for is not tried here (tests/real_verl).
    for name in ("ray", "ray.util"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    monkeypatch.delitem(sys.modules, "verl_adapter.critic_pool", raising=False)
    from verl_adapter.critic_pool import CriticHost

    monkeypatch.setattr(os, "_exit", lambda code: None)  # ends an actor whose worker ended
    monkeypatch.setattr("verl_adapter.critic_pool._START_S", 30)
    file = tmp_path / "redis-password"
    file.write_text(_PASSWORD)
    file.chmod(0o600)
    monkeypatch.setenv("RQ_REDIS_URL", "redis://127.0.0.1:1/0")  # of the node
    monkeypatch.setenv("VLAC_REDIS_PASSWORD", "of the node, too")
    given = {"VLAC_REDIS_URL": server.url, "VLAC_REDIS_PASSWORD_FILE": str(file), "VLAC_CRITIC": "reference"}
    host = CriticHost("critic", given)
    try:
        assert host.listens().startswith("critic-")
        worker = psutil.Process(host._process.pid)
        for process in (worker, *worker.children(recursive=True)):
            hidden("\n".join(f"{name}={value}" for name, value in process.environ().items()))
    finally:
        host.drain()
        monkeypatch.delitem(sys.modules, "verl_adapter.critic_pool")


def test_reprs_and_errors_show_none(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    config = VlacConfig.from_env(settings_of(environ), queue="nobody-listens")
    wrong = VlacConfig(redis_url=config.redis_url.replace(":hush", ":hushh"))
    away = VlacConfig(redis_url=f"redis://:{_SPELLINGS[1]}@127.0.0.1:1/0")
    shown = [repr(config), repr(wrong), f"{away}"]
    with CriticClient(config) as client:
        shown.append(repr(client))
        with client.episode("a task") as episode:
            episode.push(np.zeros((8, 8, 3), np.uint8))
            shown += [repr(episode), repr(copy.copy(client))]
            with pytest.raises(VlacQueueError) as nobody:
                episode.ask_done()
            shown.append("".join(traceback.format_exception(nobody.value)))
    for each, kind in ((wrong, RedisDenied), (away, RedisUnavailable)):
        with pytest.raises(kind) as refused:
            CriticClient(each).ping()
        shown.append("".join(traceback.format_exception(refused.value)))
    for text in (*shown, caplog.text or "-"):
        hidden(text)


#: Cut into such pieces by what is special in a URL, no piece of it may show.
_MARK = "S3cr3t"
_SPECIAL = st.text("/?#@:%&=[],;+ \\\"'\n\u2100\uff0f\ud800é\0|<>^`{}!$()*-._~0", min_size=0, max_size=3)
_ODD_PASSWORDS = st.lists(_SPECIAL, min_size=1, max_size=5).map(
    lambda between: _MARK + _MARK.join(between) + _MARK
)
_FORMS = st.sampled_from(
    [
        "{scheme}://u:{password}@127.0.0.1:1/0",
        "{scheme}://:{password}@127.0.0.1:1/mymaster/0",
        "{scheme}://u:{password}@/run/none.sock",
        "{scheme}://u:{password}@[::1]:x?db=y",
        "{scheme}://127.0.0.1:1/0?password={password}",
        "{scheme}://127.0.0.1:1/mymaster?db=0&sentinel_password={password}#x",
        "{scheme}://u:{password}",
        "{scheme}:/u:{password}@127.0.0.1:1",
        "u:{password}@127.0.0.1:1",
        "{scheme}://u:{password}@127.0.0.1:1,u:{password}@127.0.0.1:2/mymaster",
    ]
)
_SCHEMES = st.sampled_from(
    ["redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "http", "REDIS", "", "redis://redis"]
)


@settings(deadline=None)
@given(form=_FORMS, scheme=_SCHEMES, password=_ODD_PASSWORDS)
@example(form="{scheme}://u:{password}@host", scheme="redis", password="S3cr3t#x")
@example(form="{scheme}://u:{password}@host", scheme="redis", password="1/S3cr3t")
@example(form="{scheme}://u:{password}@127.0.0.1:1/0", scheme="unix", password="S3cr3t@#S3cr3t")
@example(form="{scheme}://u:{password}@127.0.0.1:1/0", scheme="unix", password="S3cr3t@/S3cr3t")
@example(form="{scheme}://u:{password}@host/0", scheme="redis", password="S3cr3t\uff0f")
def test_no_error_about_an_odd_url_shows_the_password(form: str, scheme: str, password: str) -> None:
    # Nobody can tell redis://u:half@half from a host.
    assume("@" not in password or "127" in form.partition("{password}")[2] or "?" in form or "run" in form)
    url = form.format(scheme=scheme, password=password)
    shown = [redact_url(url)]
    try:
        config = VlacConfig(redis_url=with_credentials(url, {}))
        shown.append(repr(config))
        client = CriticClient(config)
        client._connection = connect(url, retry=Retry(NoBackoff(), 0))
        if "sentinel" not in scheme:  # those are looked for too long
            client.ping()
    except VlacQueueError as error:
        while error:
            shown += [str(error), repr(error.args), *traceback.format_exception(error)]
            error = error.__cause__ or error.__context__  # type: ignore[assignment]
    assert not any("s3cr3t" in text.lower() for text in shown), shown
