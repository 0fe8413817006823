"""FastAPI on uvicorn with micro-batching; bodies packed with lz4.

uvicorn runs on uvloop and httptools without an access log; the client is aiohttp on uvloop, with connections that
stay open. A step is a request for each frame, all in flight together, or one request with all of its frames, which
a service can offer to clients that know all episodes.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import aiohttp
import uvloop

from benchmarks.peers import Asker
from benchmarks.peers.bodies import body_of
from benchmarks.processes import module, wait_for_port
from vlac_queue.frames import Frames
from vlac_queue.server import free_port

#: Of Linux' struct tcp_info: bytes acknowledged and bytes received, two uint64.
_TCP_INFO_BYTES = 120


@contextmanager
def start(url: str, episodes: int, *, together: bool) -> Iterator[Asker]:
    """Start one service; it has no use for Redis."""
    port, loop = free_port(), uvloop.new_event_loop()
    with module("benchmarks.peers.http_app", port):
        wait_for_port(port)
        client = _Client(f"http://127.0.0.1:{port}/done")
        loop.run_until_complete(client.open(connections=max(episodes, 64)))
        ask = client.ask_together if together else client.ask_apart
        try:
            yield Asker(lambda frames: loop.run_until_complete(ask(frames)), client.wire_bytes)
        finally:
            loop.run_until_complete(client.session.close())
            loop.close()


class _Client:
    session: aiohttp.ClientSession

    def __init__(self, address: str) -> None:
        self._address = address
        self._sockets: list[socket.socket] = []

    async def open(self, connections: int) -> None:
        connector = aiohttp.TCPConnector(limit=connections, socket_factory=self._socket)
        self.session = aiohttp.ClientSession(connector=connector)

    async def ask_together(self, frames: Sequence[Frames]) -> list[bool]:
        async with self.session.post(self._address, data=body_of(frames)) as response:
            response.raise_for_status()
            answers: list[bool] = json.loads(await response.read())
            return answers

    async def ask_apart(self, frames: Sequence[Frames]) -> list[bool]:
        # Each request is on its way while the next frame is packed.
        requests = []
        for frame in frames:
            requests.append(asyncio.create_task(self.ask_together([frame])))
            await asyncio.sleep(0)
        return [answers[0] for answers in await asyncio.gather(*requests)]

    def wire_bytes(self) -> int:
        infos = (each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256) for each in self._sockets)
        return sum(sum(struct.unpack_from("QQ", info, _TCP_INFO_BYTES)) for info in infos)

    def _socket(self, info: Any) -> socket.socket:
        family, kind, protocol, _, _ = info
        self._sockets.append(socket.socket(family, kind, protocol))
        return self._sockets[-1]
