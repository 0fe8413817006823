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
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.peers import Asker, pack
from benchmarks.processes import process
from vlac_queue.frames import Frames
from vlac_queue.server import free_port

#: Of Linux' struct tcp_info: bytes acknowledged and bytes received, two uint64.
_TCP_INFO_BYTES = 120
_LENGTH = struct.Struct("<I")


@contextmanager
def start(url: str, episodes: int, *, together: bool) -> Iterator[Asker]:
    """One service; it has no use for Redis."""
    import aiohttp
    import uvloop

    port = free_port()
    address = f"http://127.0.0.1:{port}/done"
    sockets: list[socket.socket] = []

    def make_socket(info: Any) -> socket.socket:
        family, kind, protocol, _, _ = info
        sockets.append(socket.socket(family, kind, protocol))
        return sockets[-1]

    def wire_bytes() -> int:
        return sum(sum(_tcp_bytes(each)) for each in sockets)

    loop = uvloop.new_event_loop()

    async def open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=max(episodes, 64), socket_factory=make_socket)
        )

    async def post(session: aiohttp.ClientSession, body: bytes) -> list[bool]:
        async with session.post(address, data=body) as response:
            response.raise_for_status()
            answers: list[bool] = json.loads(await response.read())
            return answers

    async def ask_each(session: aiohttp.ClientSession, frames: Sequence[Frames]) -> list[bool]:
        # Each request is on its way while the next frame is packed.
        requests = []
        for frame in frames:
            requests.append(asyncio.create_task(post(session, body_of([frame]))))
            await asyncio.sleep(0)
        return [answers[0] for answers in await asyncio.gather(*requests)]

    with process(["-m", "benchmarks.peers.http_app", str(port)]):
        wait_for_port(port)
        session = loop.run_until_complete(open_session())

        def ask(frames: Sequence[Frames]) -> list[bool]:
            if together:
                return loop.run_until_complete(post(session, body_of(frames)))
            return loop.run_until_complete(ask_each(session, frames))

        try:
            yield Asker(ask, wire_bytes)
        finally:
            loop.run_until_complete(session.close())
            loop.close()


def body_of(frames: Sequence[Frames]) -> bytes:
    """Packed frames, each after its length."""
    packed = [pack(frame) for frame in frames]
    return b"".join(part for each in packed for part in (_LENGTH.pack(len(each)), each))


def frames_in(body: bytes) -> Iterator[memoryview]:
    """The packed frames of a body."""
    view, start = memoryview(body), 0
    while start < len(view):
        (length,) = _LENGTH.unpack_from(view, start)
        start += _LENGTH.size
        yield view[start : start + length]
        start += length


def _tcp_bytes(connection: socket.socket) -> tuple[int, int]:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    sent, received = struct.unpack_from("QQ", info, _TCP_INFO_BYTES)
    return sent, received


def wait_for_port(port: int) -> None:
    """Returns when something listens there."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
