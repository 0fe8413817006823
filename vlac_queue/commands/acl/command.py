"""`vlac-queue acl`: print a `users.acl` for redis-server."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

import click

from vlac_queue.commands.acl.users import ADMIN, DEFAULT_OFF, VERSIONS, acl_line, admin_line, users
from vlac_queue.config import VlacConfig
from vlac_queue.console import errors_as_messages, queue_option
from vlac_queue.credentials import read_password
from vlac_queue.errors import ConfigError, RedisUnavailable
from vlac_queue.keys import Keys
from vlac_queue.server import find_redis_server, server_version

#: Least characters of a password that a person made: Redis keeps a plain SHA-256 of it, which can be tried fast.
_LEAST_CHARS = 16


@click.command(short_help="Print Redis users with least rights.")
@queue_option
@click.option(
    "--redis-version",
    metavar="VERSION",
    help="Version of the redis-server that reads the file, 6.2 or newer; Valkey's count alike.  "
    "[default: that of this host's redis-server]  From 7.0 on keys are for reading or writing, and for the "
    "commands that need them; 6.2 knows neither, and grants more.",
)
@click.option(
    "--passwords",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder with one password file for each user, named like the user. What is missing is made (mode 600).",
)
@click.option(
    "--show-passwords", is_flag=True, help="Print made passwords to standard error, once; keep no files."
)
@click.option(
    "--admin/--no-admin",
    default=True,
    show_default=True,
    help=f"Whether there is {ADMIN}, who may do everything: without it nobody can end an endless script (SCRIPT "
    "KILL), or change the running server.",
)
def acl(queue: str, redis_version: str | None, passwords: Path | None, show_passwords: bool, admin: bool) -> None:
    """Print a users.acl for redis-server: one user each for rollouts, workers, dashboards and who looks after it.

    \b
    vlac-queue acl --passwords secrets > users.acl
    redis-server --aclfile users.acl
    VLAC_REDIS_USERNAME=vlac-worker VLAC_REDIS_PASSWORD_FILE=secrets/vlac-worker vlac-queue worker

    The file holds the passwords' SHA-256 only. With password files made before, the same passwords stay.
    """
    if (passwords is None) != show_passwords:
        raise click.UsageError("say where the passwords go: --passwords FOLDER, or --show-passwords.")
    with errors_as_messages():
        keys = Keys(VlacConfig(queue=queue).queue)
        version = _rules_of(redis_version) if redis_version else _of_this_host()
        chosen = users(keys)
        names = [user.name for user in chosen] + ([ADMIN] if admin else [])
        known = {name: _from_folder(passwords, name) if passwords else secrets.token_urlsafe(32) for name in names}
    lines = [DEFAULT_OFF, *(acl_line(user, known[user.name], VERSIONS[version]) for user in chosen)]
    if admin:
        lines.append(admin_line(known[ADMIN]))
    click.echo("\n".join(lines))
    for name in names if show_passwords else ():
        click.echo(f"{name} {known[name]}", err=True)


def _rules_of(version: str) -> str:
    """Return the key of VERSIONS for a server's version, such as "7.4" or "8": the newest that is not above it."""
    if not re.fullmatch(r"\d+(\.\d+)*", version):
        raise ConfigError(f"{version!r} is no version of Redis; give its number, such as 7.4 or 8.")
    numbers = tuple(map(int, f"{version}.0".split(".")))
    name = next((name for name, least in reversed(VERSIONS.items()) if least <= numbers), None)
    if name is None:
        raise ConfigError(f"Redis 6.2 or newer is needed, not {version}; update redis-server.")
    return name


def _of_this_host() -> str:
    """Return the key of VERSIONS for the redis-server that would be started here, and say which it is."""
    try:
        executable = find_redis_server()
        version = ".".join(map(str, server_version(executable)))
    except RedisUnavailable as error:
        raise ConfigError(f"which Redis reads the file? Say --redis-version, such as 7.2 ({error}).") from None
    known = _rules_of(version)
    click.echo(
        f"for Redis {known}, since {executable} is {version}; for another server give --redis-version", err=True
    )
    return known


def _from_folder(folder: Path, name: str) -> str:
    """Return the password in the file FOLDER/NAME, which is made if it is not there."""
    path = folder / name
    if path.exists():
        password = read_password(path)
        if len(password) < _LEAST_CHARS:
            raise ConfigError(f"the password in {path} is shorter than {_LEAST_CHARS} characters; delete it.")
        return password
    password = secrets.token_urlsafe(32)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{password}\n")
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error.strerror}).") from None
    return password
