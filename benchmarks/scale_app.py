"""What `scale` measures: one topic, and events in it when somebody asks for them."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any
from urllib.parse import parse_qsl

from sse_asgi import sse_app
from sse_asgi.hub import Hub

# Room for a few events of the largest size.
hub = Hub(max_bytes=16 * 1024 * 1024)
events = sse_app(lambda: hub.subscribe("t"), ping=float(os.environ.get("PING", "15")))
tasks: set[asyncio.Task[None]] = set()


async def publish(count: int, size: int, interval: float) -> None:
    """Publish so many events; each begins with the time, in 20 digits, and the last ends with !."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    for number in range(count):
        data = f"{time.monotonic_ns():020}".ljust(size - 1, "x")
        await hub.publish("t", data + ("!" if number == count - 1 else "x"))
        due += interval
        await asyncio.sleep(due - loop.time())


def start(work: Any) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def question(scope: Any) -> dict[str, str]:
    return dict(parse_qsl(scope["query_string"].decode()))


async def nothing(send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http" and scope["path"] == "/publish":
        asked = question(scope)
        start(publish(int(asked["count"]), int(asked["size"]), float(asked["interval"])))
        await nothing(send)
    elif scope["type"] == "http" and scope["path"] != "/events":
        await nothing(send)
    else:
        await events(scope, receive, send)
