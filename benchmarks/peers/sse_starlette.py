"""sse-starlette on Starlette, with its defaults; a queue each for the fan-out."""

from __future__ import annotations

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..expressions import code_of
from .common import PING, PLACE, SHAPE, Queues, idle, never_waits, start_publishing, waits
from .middleware import placed

build = code_of("sse_starlette", SHAPE).builder()
queues = Queues()


async def stream(request: Request) -> Response:
    return EventSourceResponse(never_waits(build))


async def wait(request: Request) -> Response:
    return EventSourceResponse(waits(build))


async def events(request: Request) -> Response:
    return EventSourceResponse(queues.listen())


async def rest(request: Request) -> Response:
    return EventSourceResponse(idle(), ping=PING)


async def publish(request: Request) -> Response:
    start_publishing(queues.publish, request.url.query)
    return Response()


app = placed(
    Starlette(
        routes=[
            Route("/stream", stream),
            Route("/wait", wait),
            Route("/events", events),
            Route("/idle", rest),
            Route("/publish", publish),
        ]
    ),
    PLACE,
)
