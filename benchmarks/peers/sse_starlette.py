"""sse-starlette on Starlette, with its defaults; a queue each for the fan-out."""

from __future__ import annotations

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .common import PING, Queues, idle, never_waits, start_publishing, waits

queues = Queues()


async def stream(request: Request) -> Response:
    return EventSourceResponse(never_waits())


async def wait(request: Request) -> Response:
    return EventSourceResponse(waits())


async def events(request: Request) -> Response:
    return EventSourceResponse(queues.listen())


async def rest(request: Request) -> Response:
    return EventSourceResponse(idle(), ping=PING)


async def publish(request: Request) -> Response:
    start_publishing(queues.publish, request.url.query)
    return Response()


app = Starlette(
    routes=[
        Route("/stream", stream),
        Route("/wait", wait),
        Route("/events", events),
        Route("/idle", rest),
        Route("/publish", publish),
    ]
)
