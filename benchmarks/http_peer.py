"""What a rollout's queue is compared with: a synchronous HTTP service with micro-batching (FastAPI, uvicorn)."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

#: Most queries in one call of the critic, and seconds to wait for them; as the queue's workers.
MAX_BATCH = 16
MAX_WAIT_S = 0.005


def serve(port: int, batch_s: float) -> None:
    """Runs the service on 127.0.0.1; each batch takes `batch_s`.

    POST /done takes raw uint8 (n,256,256,3) and answers n times "not done"; POST /value/{n} answers n values.
    """
    import uvicorn
    from fastapi import FastAPI, Request

    app = FastAPI()
    waiting: asyncio.Queue[asyncio.Future[bool]] = asyncio.Queue()

    async def critic() -> None:
        while True:
            batch = [await waiting.get()]
            deadline = asyncio.get_running_loop().time() + MAX_WAIT_S
            while len(batch) < MAX_BATCH and (left := deadline - asyncio.get_running_loop().time()) > 0:
                try:
                    batch.append(await asyncio.wait_for(waiting.get(), left))
                except asyncio.TimeoutError:
                    break
            await asyncio.sleep(batch_s)
            for future in batch:
                future.set_result(False)

    async def ask(count: int) -> list[bool]:
        futures = [asyncio.get_running_loop().create_future() for _ in range(count)]
        for future in futures:
            waiting.put_nowait(future)
        return list(await asyncio.gather(*futures))

    async def done(request: Request) -> list[bool]:
        frames = np.frombuffer(await request.body(), np.uint8).reshape(-1, 256, 256, 3)
        return await ask(len(frames))

    async def value(count: int) -> list[bool]:
        return await ask(count)

    # FastAPI reads these, and can't see a name that is imported in a function.
    done.__annotations__ = {"request": Request, "return": list[bool]}
    app.post("/done")(done)
    app.post("/value/{count}")(value)
    tasks: list[Any] = []

    async def run() -> None:
        tasks.append(asyncio.create_task(critic()))
        await uvicorn.Server(uvicorn.Config(app, port=port, log_level="error")).serve()

    asyncio.run(run())
