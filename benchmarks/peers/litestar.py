"""Litestar's ``ServerSentEvent``; a queue each for the fan-out. It has no pings."""

from __future__ import annotations

from typing import Any

from litestar import Litestar, Request, get
from litestar.response import ServerSentEvent

from ..expressions import code_of
from .common import SHAPE, Queues, idle, never_waits, start_publishing, waits

build = code_of("litestar", SHAPE).builder()
queues = Queues()


@get("/stream")
async def stream() -> ServerSentEvent:
    return ServerSentEvent(never_waits(build))


@get("/wait")
async def wait() -> ServerSentEvent:
    return ServerSentEvent(waits(build))


@get("/events")
async def events() -> ServerSentEvent:
    return ServerSentEvent(queues.listen())


@get("/idle")
async def rest() -> ServerSentEvent:
    return ServerSentEvent(idle())


@get("/publish")
async def publish(request: Request[Any, Any, Any]) -> None:
    start_publishing(queues.publish, request.url.query)


app = Litestar([stream, wait, events, rest, publish])
