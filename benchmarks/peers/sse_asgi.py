"""This library, with its defaults: ``sse_app``, and the hub for the fan-out."""

from __future__ import annotations

from typing import Any

from sse_asgi import sse_app
from sse_asgi.hub import Hub

from .common import PING, idle, never_waits, start_publishing, waits

hub = Hub()

options: Any = {} if PING is None else {"ping": PING}

streams = {
    "/stream": sse_app(never_waits),
    "/wait": sse_app(waits),
    "/events": sse_app(lambda: hub.subscribe("news")),
    "/idle": sse_app(idle, **options),
}

lifespan = sse_app(idle, lifespan=hub.lifespan)


async def publish(text: str) -> None:
    await hub.publish("news", text)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    elif scope["path"] == "/publish":
        start_publishing(publish, scope["query_string"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
    else:
        await streams[scope["path"]](scope, receive, send)
