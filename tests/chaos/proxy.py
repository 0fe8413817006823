"""A TCP proxy that does harm on demand: delays, throttles, stalls, cuts in the middle of a reply, partitions."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable

import click

_CHUNK = 64 << 10
#: Seconds that a lost segment costs: TCP's first retransmission timeout.
_RETRANSMISSION_S = 0.2


class Proxy:
    """Stands between clients and a server; harmless until told otherwise. Attributes may change at any time.

    Args:
        target: host and port of the server.
        listen: host and port to listen on; port 0 takes a free one.
        seed: of the harm that comes at random.
    """

    def __init__(self, target: tuple[str, int], listen: tuple[str, int] = ("127.0.0.1", 0), seed: int = 0) -> None:
        self.target = target
        #: Seconds that everything takes longer, each way.
        self.delay_s = 0.0
        #: Bytes per second of each connection, each way; 0: no limit.
        self.bytes_per_s = 0.0
        #: Chance that a chunk is "lost": it comes a retransmission later.
        self.loss = 0.0
        #: Chance that a chunk is cut: half of it arrives, then the connection is reset.
        self.cut_chance = 0.0
        #: Replies that were cut.
        self.cuts = 0
        self._chance = random.Random(seed)
        self._listen = listen
        self._held = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def port(self) -> int:
        return self._listen[1]

    @property
    def url(self) -> str:
        return f"redis://{self._listen[0]}:{self.port}/0"

    def start(self) -> Proxy:
        self._thread.start()
        self._call(self._open)
        return self

    def stop(self) -> None:
        self._call(self._close)
        self._call(self._end_tasks)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reset(self) -> None:
        """Resets all connections; new ones are welcome."""
        self._call(self._reset)

    def hold(self) -> None:
        """A partition: nothing passes any more, and nobody is told; new connections hang."""
        self._held = True
        self._loop.call_soon_threadsafe(self._flows.clear)

    def release(self) -> None:
        """Ends the partition; what was sent meanwhile arrives."""
        self._held = False
        self._loop.call_soon_threadsafe(self._flows.set)

    def refuse(self) -> None:
        """Resets all connections, and refuses new ones."""
        self._call(self._close)

    def accept(self) -> None:
        """Accepts connections again."""
        self._call(self._open)

    def __enter__(self) -> Proxy:
        return self.start()

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def _call(self, function: Callable[[], object]) -> None:
        async def run() -> None:
            outcome = function()
            if asyncio.iscoroutine(outcome):
                await outcome

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(60)

    async def _open(self) -> None:
        if not self._held:
            self._flows.set()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(self._listen)
        self._listen = (self._listen[0], listener.getsockname()[1])
        self._server = await asyncio.start_server(self._serve, sock=listener)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._reset()

    async def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _reset(self) -> None:
        for writer in list(self._writers):
            _abort(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._flows.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            _abort(writer)
            return
        pair = {writer, far_writer}
        self._writers |= pair
        try:
            with contextlib.suppress(asyncio.CancelledError):  # at the end, of which nobody need be told
                await asyncio.gather(
                    self._pass(reader, far_writer, pair, reply=False),
                    self._pass(far_reader, writer, pair, reply=True),
                )
        finally:
            self._writers -= pair
            for each in pair:
                _abort(each)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pair: set[asyncio.StreamWriter],
        reply: bool,
    ) -> None:
        """Carries one direction; a delay holds up each chunk and not those behind it a second time."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        sending = asyncio.ensure_future(self._send(queue, writer, pair, reply))
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                late = _RETRANSMISSION_S if self._chance.random() < self.loss else 0.0
                await queue.put((time.monotonic() + self.delay_s + late, data))
        await queue.put((0.0, b""))
        await sending
        for each in pair:
            _abort(each)

    async def _send(
        self,
        queue: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        pair: set[asyncio.StreamWriter],
        reply: bool,
    ) -> None:
        while True:
            due, data = await queue.get()
            if not data:
                return
            if (left := due - time.monotonic()) > 0:
                await asyncio.sleep(left)
            await self._flows.wait()
            if self.bytes_per_s:
                await asyncio.sleep(len(data) / self.bytes_per_s)
            cut = reply and self._chance.random() < self.cut_chance
            with contextlib.suppress(OSError, RuntimeError):
                writer.write(data[: len(data) // 2] if cut else data)
                await writer.drain()
            if cut:
                self.cuts += 1
                for each in pair:
                    _abort(each, reset=each is not writer)


def _abort(writer: asyncio.StreamWriter, reset: bool = True) -> None:
    """Closes a connection at once: by a reset, or so that what was sent still arrives."""
    sock = writer.get_extra_info("socket")
    if reset and sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort() if reset else writer.close()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


@click.command()
@click.option("--listen", required=True, help="HOST:PORT to listen on.")
@click.option("--target", required=True, help="HOST:PORT of the server.")
@click.option("--delay", default=0.0, help="Seconds that everything takes longer, each way.")
@click.option("--loss", default=0.0, help="Chance that a chunk comes a retransmission later.")
@click.option("--cut", default=0.0, help="Chance that a reply is cut in the middle.")
def main(listen: str, target: str, delay: float, loss: float, cut: float) -> None:
    """Runs a proxy until it is ended."""
    proxy = Proxy(_address(target), _address(listen))
    proxy.delay_s, proxy.loss, proxy.cut_chance = delay, loss, cut
    proxy.start()
    print("listens", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
