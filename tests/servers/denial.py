"""An application that denies every websocket with a stream, and says how that has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from sse_asgi import CloseReport
from sse_asgi.starlette import EventSourceResponse


async def why() -> AsyncIterator[dict[str, str]]:
    yield {"event": "denied", "data": "not you"}


async def at_length() -> AsyncIterator[dict[str, str]]:
    async for event in why():
        yield event
    await anyio.sleep_forever()


def on_close(report: CloseReport) -> None:
    print("closed", report.reason.value, flush=True)


async def deny(websocket: WebSocket) -> None:
    source = at_length() if websocket.url.path == "/endless" else why()
    await websocket.send_denial_response(EventSourceResponse(source, 403, on_close=on_close))


app = Starlette(routes=[WebSocketRoute("/{path:path}", deny)])
