"""``fastapi.sse``, with its defaults; a queue each for the fan-out.

``raw_data`` for text because ``data`` would be written as JSON.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import fastapi.routing
from fastapi import FastAPI, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from ..expressions import code_of
from .common import PING, SHAPE, Queues, idle, never_waits, start_publishing, waits

if PING is not None:
    # There is no option for it.
    fastapi.routing._PING_INTERVAL = PING  # type: ignore[attr-defined]

build = code_of("fastapi_sse", SHAPE).builder()
queues = Queues()
app = FastAPI()


@app.get("/stream", response_class=EventSourceResponse)
async def stream() -> AsyncIterator[ServerSentEvent]:
    async for event in never_waits(build):
        yield event


@app.get("/wait", response_class=EventSourceResponse)
async def wait() -> AsyncIterator[ServerSentEvent]:
    async for event in waits(build):
        yield event


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
