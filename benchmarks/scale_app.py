"""What `scale` measures: one topic, and events in it when somebody asks for them."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from sse_asgi import sse_app
from sse_asgi.hub import Hub

hub = Hub()
events = sse_app(lambda: hub.subscribe("t"), ping=float(os.environ.get("PING", "15")))
tasks: set[asyncio.Task[None]] = set()


async def publish() -> None:
    from .scale import RATE, SECONDS

    for number in range(RATE * SECONDS):
        await hub.publish("t", {"data": f"{number:0200}"})
        await asyncio.sleep(1 / RATE)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http" and scope["path"] == "/publish":
        task = asyncio.create_task(publish())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
    else:
        await events(scope, receive, send)
