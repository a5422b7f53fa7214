"""What a stream costs for an event, compared with a bare loop: ``async for … await send(…)``.

The server is a ``send`` that does nothing, the worst case for the ratio; send timeout and ping are
on, as they are by default.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio

from sse_asgi import sse_app
from sse_asgi.starlette import EventSourceResponse

from .measure import side_by_side, table

SCOPE = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}


async def never() -> Any:
    await anyio.sleep_forever()


async def send(message: Any) -> None:
    pass


async def source(operations: int, event: Any) -> AsyncIterator[Any]:
    for _ in range(operations):
        yield event


async def bare(operations: int, event: Any) -> None:
    async for data in source(operations, event):
        frame = data if isinstance(data, bytes) else f"data: {data}\n\n".encode()
        await send({"type": "http.response.body", "body": frame, "more_body": True})


async def stream(operations: int, event: Any) -> None:
    app = sse_app(lambda: source(operations, event))
    await app(dict(SCOPE), never, send)


async def response(operations: int, event: Any) -> None:
    await EventSourceResponse(source(operations, event))(dict(SCOPE), never, send)


async def sse_starlette(operations: int, event: Any) -> None:
    app = importlib.import_module("sse_starlette").EventSourceResponse(source(operations, event))
    await app(dict(SCOPE), never, send)


def on(backend: str, function: Callable[..., Any], event: Any) -> Callable[[int], None]:
    def run(operations: int) -> None:
        anyio.run(functools.partial(function, operations, event), backend=backend)

    return run


def main() -> None:
    for backend in ("asyncio", "trio"):
        for event in (b"data: hello\n\n", "hello", {"event": "tick", "data": "hello"}):
            plain = "hello" if isinstance(event, dict) else event
            candidates = {
                "bare loop": on(backend, bare, plain),
                "sse_app": on(backend, stream, event),
                "EventSourceResponse": on(backend, response, event),
            }
            # It does not run on trio.
            if backend == "asyncio" and importlib.util.find_spec("sse_starlette"):
                candidates["sse-starlette"] = on(backend, sse_starlette, event)
            figures = side_by_side(candidates, 50_000)
            print(table(f"pump on {backend}, {type(event).__name__}", figures, base="bare loop"))
