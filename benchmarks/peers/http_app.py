"""The FastAPI service: `python -m benchmarks.peers.http_app PORT`.

POST /done takes packed frames and answers a bool for each. The critic gets what waits at the moment, up to `_MOST`
frames: nothing waits for a batch to fill, so that a single query is as quick as it can be.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import click
import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.peers import look, unpack
from benchmarks.peers.bodies import frames_in
from vlac_queue.frames import Frames

_MOST = 64


def service() -> FastAPI:
    """Return the application."""
    waiting: asyncio.Queue[tuple[Frames, asyncio.Future[bool]]] = asyncio.Queue()

    async def critic() -> None:
        while True:
            batch = [await waiting.get()]
            while len(batch) < _MOST and not waiting.empty():
                batch.append(waiting.get_nowait())
            for frame, future in batch:
                if not future.done():
                    future.set_result(look(frame))

    async def ask(frames: Sequence[Frames]) -> Response:
        futures = [asyncio.get_running_loop().create_future() for _ in frames]
        for pair in zip(frames, futures, strict=True):
            waiting.put_nowait(pair)
        answers = [await future for future in futures]
        return Response("[" + ",".join("true" if each else "false" for each in answers) + "]")

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        answering = asyncio.create_task(critic())
        yield
        answering.cancel()

    app = FastAPI(lifespan=life)

    @app.post("/done")
    async def done(request: Request) -> Response:
        return await ask([unpack(packed) for packed in frames_in(await request.body())])

    return app


@click.command()
@click.argument("port", type=int)
def main(port: int) -> None:
    """Serves on 127.0.0.1."""
    uvicorn.run(
        service(),
        port=port,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
