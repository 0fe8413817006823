"""`vlac-queue episodes close`: delete what a crashed run left open on Redis."""

from __future__ import annotations

from typing import Any

import click

from vlac_queue.commands.episodes import live
from vlac_queue.console import connected, errors_as_messages, queue_options
from vlac_queue.credentials import ROLLOUT
from vlac_queue.errors import ProtocolError
from vlac_queue.keys import Keys
from vlac_queue.store import EpisodeMeta, EpisodeStore


@click.command()
@click.argument("episodes", metavar="ID...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Close it although its rollout is there; it will say that it lost it.")
@queue_options
def close(episodes: tuple[str, ...], force: bool, redis_url: str, queue: str) -> None:
    """Delete the keys of open episodes whose rollout has died, ahead of their expiry.

    The beginning of an ID is enough where only one episode has it. An episode whose rollout was heard of in the
    last 30 seconds stays, unless --force.
    """
    keys = Keys(queue)
    with errors_as_messages(), connected(redis_url, ROLLOUT) as connection:
        for given in episodes:
            name = live.find_episode(connection, keys, given.removesuffix(".."))
            fields: Any = connection.hgetall(keys.episode(name).meta)
            meta = EpisodeMeta.from_hash(fields)
            if not force and connection.exists(keys.client(meta.client)):
                raise ProtocolError(
                    f"the rollout of episode {name!r} is there; stop it first, or give --force: it would push its "
                    "frames again, or fail."
                )
            EpisodeStore(connection, keys, ttl_s=meta.ttl_s).close([(name, meta.reference)])
            click.echo(f"closed: {name}")
