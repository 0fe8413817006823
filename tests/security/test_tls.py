"""TLS with certificates of one's own, on a real redis-server: who can't prove who it is, is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, Workers, until
from tests.tools import need
from vlac_queue import ConfigError, CriticClient, RedisUnavailable, VlacConfig
from vlac_queue.connection import connect
from vlac_queue.server import find_redis_server, free_port


def recipe() -> str:
    """Commands of docker-free-setup.md that make an authority and the function `certify`; with shorter keys."""
    page = (ROOT / "docker-free-setup.md").read_text()
    block = page.partition("### TLS")[2].partition("```bash\n")[2].partition("```")[0]
    return block.partition("certify redis ")[0].replace("rsa:4096", "rsa:2048")


class Authority:
    """A certificate authority and what it certifies, as docker-free-setup.md makes them; in one folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.certificate = self.folder / "ca.crt"
        self._run(recipe().replace("/CN=vlac authority", f"/CN={name}"))

    def certify(self, name: str, subject: str) -> tuple[Path, Path]:
        """Certificate and key for a host or client."""
        certify = recipe()[recipe().index("certify()") :]
        self._run(f"{certify}\ncertify {name} {subject}")
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def _run(self, script: str) -> None:
        ran = subprocess.run(["bash", "-ec", script], cwd=self.folder, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr


@dataclass(frozen=True)
class TlsServer:
    """A redis-server that wants a certificate of its clients.

    Attributes:
        authority: certified it.
        stranger: another authority, that nobody here trusts.
    """

    port: int
    authority: Authority
    stranger: Authority

    def url(self, *, ca: Path | None = None, client: str = "client", host: str = "127.0.0.1") -> str:
        query = f"ssl_ca_certs={ca or self.authority.certificate}"
        if client:
            folder = (self.stranger if client == "foreign" else self.authority).folder
            query += f"&ssl_certfile={folder / client}.crt&ssl_keyfile={folder / client}.key"
        return f"rediss://:hush@{host}:{self.port}/0?{query}"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    need("openssl")
    return Authority(tmp_path_factory.mktemp("tls"), "authority")


def test_the_recipe_makes_what_the_strictest_python_takes(authority: Authority) -> None:
    """Python 3.13 and newer check certificates so (ssl.VERIFY_X509_STRICT), older ones less."""
    certificate, _ = authority.certify("strict", "DNS:redis-host")
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(authority.certificate), str(certificate)]
    verified = subprocess.run(command, capture_output=True, text=True)
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.fixture(scope="module")
def tls(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    folder = tmp_path_factory.mktemp("server")
    stranger = Authority(folder, "stranger")
    certificate, key = authority.certify("server", "IP:127.0.0.1")
    authority.certify("client", "DNS:client")
    stranger.certify("foreign", "DNS:client")
    server = TlsServer(free_port(), authority, stranger)
    command = [find_redis_server(), "--port", "0", "--tls-port", str(server.port), "--bind", "127.0.0.1"]
    command += [
        "--tls-cert-file",
        str(certificate),
        "--tls-key-file",
        str(key),
        "--dir",
        str(folder),
        "--save",
        "",
    ]
    command += ["--tls-ca-cert-file", str(authority.certificate), "--requirepass", "hush"]
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is not None or _listens(server.port))
        if process.poll() is not None:
            said = (folder / "server.log").read_text()
            assert "tls-port" in said and "Bad directive" in said, said
            pytest.skip("redis-server is built without TLS")
        yield server
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def environ(url: str, **more: str) -> dict[str, str]:
    return {**os.environ, "VLAC_REDIS_URL": url, "PYTHONPATH": str(ROOT), **more}


@pytest.mark.parametrize(
    "worker_class",
    [
        pytest.param("workers.CriticWorker", id="CriticWorker"),
        pytest.param(None, id="rq.Worker", marks=pytest.mark.slow),
    ],
)
def test_client_worker_and_dashboard_speak_tls(worker_class: str | None, tls: TlsServer, tmp_path: Path) -> None:
    with connect(tls.url()) as connection:
        connection.flushall()
        workers = Workers(tls.url(), connection, tmp_path)
        try:
            workers.start(worker_class=worker_class)
            black = np.zeros((2, 32, 32, 3), np.uint8)
            config = VlacConfig(redis_url=tls.url(), timeout_s=60)
            with CriticClient(config) as client, client.episode("a task", reference=black) as episode:
                episode.push(black)
                assert episode.ask_done().result().frame == 1
            shown = [
                subprocess.run(
                    [sys.executable, "-m", *command, "--json"],
                    env=environ(tls.url()), capture_output=True, text=True,
                )
                for command in (("dashboards.live", "--once"), ("vlac_queue.cli", "doctor", "--host", "rollout"))
            ]  # fmt: skip
            assert json.loads(shown[0].stdout)["snapshot"]["workers"][0]["critic"] == "reference", shown[0].stderr
            assert not json.loads(shown[1].stdout)["broken"], shown[1].stdout
            assert not any("hush" in ran.stdout + ran.stderr for ran in shown)
        finally:
            workers.stop()


_REFUSALS = [
    pytest.param(
        lambda tls: tls.url(ca=tls.stranger.certificate), "certificate verify failed", id="wrong authority"
    ),
    pytest.param(lambda tls: tls.url(host="localhost"), "localhost", id="wrong host"),
    pytest.param(lambda tls: tls.url(client=""), "certificate required|Connection|closed", id="no certificate"),
    pytest.param(lambda tls: tls.url(client="foreign"), "unknown ca|Connection|closed", id="foreign certificate"),
    pytest.param(lambda tls: tls.url().replace("rediss", "redis").partition("?")[0], "Connection", id="no TLS"),
]


@pytest.mark.parametrize(("url", "reason"), _REFUSALS)
def test_who_can_not_prove_it_is_refused_with_the_reason(url: object, reason: str, tls: TlsServer) -> None:
    wrong = url(tls)  # type: ignore[operator]
    with pytest.raises(
        RedisUnavailable, match=f"can't reach Redis at rediss?://:\\*\\*\\*@.*({reason})"
    ) as caught:
        CriticClient(VlacConfig(redis_url=wrong)).ping()
    assert "hush" not in str(caught.value)


def test_a_certificate_that_is_not_there_is_named(tls: TlsServer) -> None:
    config = VlacConfig(redis_url=tls.url(ca=Path("/nowhere/ca.crt")))
    with pytest.raises(ConfigError, match=r"ssl_ca_certs of .* can't be read: /nowhere/ca.crt") as caught:
        CriticClient(config)
    assert "hush" not in str(caught.value)


def test_a_worker_that_can_not_prove_it_says_so_and_does_not_serve(tls: TlsServer, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlac_queue.cli", "worker", "--critic", "reference"]
    wrong = environ(tls.url(ca=tls.stranger.certificate))
    ran = subprocess.run(command, env=wrong, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    said = ran.stdout + ran.stderr
    assert ran.returncode != 0 and "certificate verify failed" in said and "hush" not in said
