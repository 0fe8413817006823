"""User and password beside the URL: from the environment or a file that not everybody may read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import redis

from vlac_queue import ConfigError, VlacConfig
from vlac_queue.config import redact_url
from vlac_queue.credentials import PASSWORD, PASSWORD_FILE, USERNAME, with_credentials

_SECRET = "h:u/s@h %2f#ä"


def parsed(url: str) -> dict[str, object]:
    """What redis-py makes of the URL."""
    kwargs = redis.ConnectionPool.from_url(url).connection_kwargs
    return {name: kwargs.get(name) for name in ("username", "password", "host", "port", "path", "db")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{_SECRET}\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h:1/2", {"host": "h", "port": 1, "db": 2}),
        ("rediss://h", {"host": "h"}),
        ("rediss://h?ssl_ca_certs=/ca.crt", {"host": "h"}),
        ("redis://[::1]:1/0", {"host": "::1", "port": 1, "db": 0}),
        ("unix:///run/r.sock?db=1", {"path": "/run/r.sock", "db": 1}),
    ],
)
def test_user_and_password_join_any_url(url: str, expected: dict[str, object], file: Path) -> None:
    for secret in ({PASSWORD: _SECRET}, {PASSWORD_FILE: str(file)}):
        joined = with_credentials(url, {USERNAME: "vlac-worker", **secret})
        wanted = {**dict.fromkeys(("host", "port", "path", "db")), **expected}
        assert parsed(joined) == {**wanted, "username": "vlac-worker", "password": _SECRET}
        assert _SECRET not in redact_url(joined) and with_credentials(joined, secret) == joined


def test_without_a_user_redis_default_user_is_meant() -> None:
    assert parsed(with_credentials("redis://h", {PASSWORD: "p"}))["username"] is None


def test_what_the_url_says_wins() -> None:
    environ = {USERNAME: "other", PASSWORD: "p"}
    for url in ("redis://:mine@h/0", "redis://me:mine@h/0", "redis://h/0?password=mine"):
        assert with_credentials(url, environ) == url
    assert parsed(with_credentials("redis://me@h/0", environ))["username"] == "me"


def test_the_configuration_takes_them_and_shows_neither(file: Path) -> None:
    config = VlacConfig.from_env({PASSWORD_FILE: str(file), "VLAC_REDIS_URL": "redis://gpu7/0"})
    assert parsed(config.redis_url)["password"] == _SECRET
    assert "ä" not in repr(config) and "***" in repr(config)
    with pytest.raises(ConfigError, match="did you mean 'VLAC_REDIS_PASSWORD'"):
        VlacConfig.from_env({"VLAC_REDIS_PASSWRD": _SECRET})


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o601, 0o777])
def test_a_file_open_to_everybody_is_refused(mode: int, file: Path) -> None:
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"every user of this host: chmod 600 {file}"):
        VlacConfig.from_env({PASSWORD_FILE: str(file)})


@pytest.mark.parametrize("content", [b"", b"\n", b"a\nb\n", b"a\0b", b"\xff", b"x" * 5000, b"a\x1bb"])
def test_a_file_that_holds_something_else_is_refused_and_not_shown(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="must hold the password as its one line") as caught:
        with_credentials("redis://h", {PASSWORD_FILE: str(file)})
    assert not content.strip() or content.decode("latin-1")[:3] not in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    no_file = "no regular file"
    for path, message in ((tmp_path / "gone", "No such file"), (tmp_path, no_file), (pipe, no_file)):
        with pytest.raises(ConfigError, match=message):
            with_credentials("redis://h", {PASSWORD_FILE: str(path)})


def test_half_or_double_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match=f"no password; set {PASSWORD_FILE}"):
        with_credentials("redis://h", {USERNAME: "vlac-worker"})
    with pytest.raises(ConfigError, match="both set; unset one"):
        with_credentials("redis://h", {PASSWORD: "p", PASSWORD_FILE: str(file)})
