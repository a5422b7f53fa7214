"""broadcaster with its memory backend, on Starlette: the fan-out only."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from broadcaster import Broadcast
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from .common import start_publishing

broadcast = Broadcast("memory://")


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with broadcast:
        yield


async def listen() -> AsyncIterator[str]:
    subscriber: Any
    async with broadcast.subscribe("news") as subscriber:
        async for event in subscriber:
            yield f"data: {event.message}\n\n"


async def events(request: Request) -> Response:
    return StreamingResponse(listen(), media_type="text/event-stream")


async def publish(request: Request) -> Response:
    async def to_news(text: str) -> None:
        await broadcast.publish("news", text)

    start_publishing(to_news, request.url.query)
    return Response()


app = Starlette(routes=[Route("/events", events), Route("/publish", publish)], lifespan=lifespan)
