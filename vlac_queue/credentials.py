"""Redis' user and password from the environment or a file, so that no URL and no command line holds them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from vlac_queue.errors import ConfigError

USERNAME = "VLAC_REDIS_USERNAME"
PASSWORD = "VLAC_REDIS_PASSWORD"
PASSWORD_FILE = "VLAC_REDIS_PASSWORD_FILE"
#: What stands beside the settings (`VlacConfig`) in the environment, and its meaning; no settings, so that a
#: printed configuration shows no password.
VARIABLES = {
    USERNAME: "User of Redis' ACL, such as vlac-worker; without it Redis' user `default` is meant.",
    PASSWORD_FILE: "File that holds the password and nothing else; one that every user can read is refused.",
    PASSWORD: "The password itself.",
}

#: The users that `vlac-queue acl` makes.
ROLLOUT, WORKER, DASHBOARD, ADMIN = "vlac-rollout", "vlac-worker", "vlac-dashboard", "vlac-admin"

#: Most bytes of a password file; more is some other file.
_MAX_BYTES = 4096


def with_credentials(url: str, environ: Mapping[str, str] = os.environ) -> str:
    """The URL with the user and password that the environment gives.

    What stands in the URL wins: a URL with a password stays as it is, and so does its user.

    Raises:
        ConfigError: the file is not there, can be read by everybody or holds no password; both or half of the
            variables are set.
    """
    user, password = environ.get(USERNAME, ""), _password(environ)
    scheme, separator, rest = url.partition("://")
    try:
        parts = urlsplit(url)
        held = parts.password or parse_qs(parts.query).get("password")
        user = unquote(parts.username or "") or user
    except ValueError:  # refused elsewhere, with a message of its own
        return url
    if held or not separator:
        return url
    if password is None:
        if environ.get(USERNAME):
            raise ConfigError(f"{USERNAME} is set, but no password; set {PASSWORD_FILE} (or {PASSWORD}) too.")
        return url
    end = min((rest.find(mark) for mark in "/?#" if mark in rest), default=len(rest))
    host = rest[:end].rpartition("@")[2]
    return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{host}{rest[end:]}"


def _password(environ: Mapping[str, str]) -> str | None:
    password, file = environ.get(PASSWORD), environ.get(PASSWORD_FILE)
    if password and file:
        raise ConfigError(f"{PASSWORD} and {PASSWORD_FILE} are both set; unset one.")
    return read_password(Path(file)) if file else password or None


def read_password(path: Path) -> str:
    """The password that a file holds: its one line.

    Raises:
        ConfigError: the file can't be read, can be read by everybody, or holds something else.
    """
    what = f"the password file {path}"
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{what} is no regular file; write the password to one (mode 600).")
        # As ssh does with keys. A group may read it: that is how hosts share secrets with services.
        if mode & stat.S_IRWXO:
            raise ConfigError(f"{what} can be read or changed by every user of this host: chmod 600 {path}")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{what} can't be read ({error.strerror}); correct {PASSWORD_FILE}.") from None
    try:
        # The last line may end.
        password = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        password = "\0"
    if not password or len(content) > _MAX_BYTES or not password.isprintable():
        raise ConfigError(f"{what} must hold the password as its one line, and nothing else.")
    return password
