"""``fastapi.sse``, with its defaults; a queue each for the fan-out.

``raw_data`` because ``data`` would be written as JSON.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import fastapi.routing
from fastapi import FastAPI, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from .common import PING, Queues, idle, never_waits, start_publishing, waits

if PING is not None:
    # There is no option for it.
    fastapi.routing._PING_INTERVAL = PING  # type: ignore[attr-defined]

queues = Queues()
app = FastAPI()


@app.get("/stream", response_class=EventSourceResponse)
async def stream() -> AsyncIterator[ServerSentEvent]:
    async for text in never_waits():
        yield ServerSentEvent(raw_data=text)


@app.get("/wait", response_class=EventSourceResponse)
async def wait() -> AsyncIterator[ServerSentEvent]:
    async for text in waits():
        yield ServerSentEvent(raw_data=text)


@app.get("/events", response_class=EventSourceResponse)
async def events() -> AsyncIterator[ServerSentEvent]:
    async for text in queues.listen():
        yield ServerSentEvent(raw_data=text)


@app.get("/idle", response_class=EventSourceResponse)
async def rest() -> AsyncIterator[ServerSentEvent]:
    async for text in idle():
        yield ServerSentEvent(raw_data=text)


@app.get("/publish")
async def publish(request: Request) -> Response:
    start_publishing(queues.publish, request.url.query)
    return Response()
