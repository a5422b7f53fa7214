"""This library, with its defaults: ``sse_app``, and the hub for the fan-out."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from sse_asgi import sse_app
from sse_asgi.hub import Hub

from ..expressions import code_of
from ..places import RESPONSE, SYNC
from .common import (
    PING,
    PLACE,
    SHAPE,
    idle,
    never_waits,
    set_gc,
    start_publishing,
    sync_idle,
    sync_never_waits,
    sync_waits,
    waits,
)
from .middleware import placed

build = code_of("sse_asgi", SHAPE).builder()

options: Any = {} if PING is None else {"ping": PING}


def hub_of_environment() -> Hub:
    if (url := os.environ.get("BENCHMARK_REDIS")) is None:
        return Hub()
    from sse_asgi.hub.redis import RedisLog

    return Hub(RedisLog(url))


hub = hub_of_environment()

#: The sources by path, async and sync.
SOURCES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "/stream": (partial(never_waits, build), partial(sync_never_waits, build)),
    "/wait": (partial(waits, build), partial(sync_waits, build)),
    "/idle": (idle, sync_idle),
}


def through_responses() -> Any:
    """The same streams as responses in the routes of Starlette."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from sse_asgi.starlette import EventSourceResponse

    def route(path: str, source: Callable[[], Any]) -> Route:
        async def endpoint(request: Request) -> Response:
            return EventSourceResponse(source(), **options)

        return Route(path, endpoint)

    return Starlette(routes=[route(path, source) for path, (source, _) in SOURCES.items()])


streams: dict[str, Any] = {
    path: sse_app(sync if PLACE == SYNC else source, **options)
    for path, (source, sync) in SOURCES.items()
}
streams["/events"] = sse_app(lambda: hub.subscribe("news"))

lifespan = sse_app(idle, lifespan=hub.lifespan)


async def publish(text: str) -> None:
    await hub.publish("news", text)


async def bare(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    elif scope["path"] in streams:
        await streams[scope["path"]](scope, receive, send)
    else:
        if scope["path"] == "/publish":
            start_publishing(publish, scope["query_string"])
        else:
            set_gc(scope["query_string"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


app = through_responses() if PLACE == RESPONSE else placed(bare, PLACE)
