"""No library: what a good engineer writes by hand, for nothing but this. The limit.

A stream is one send for each event; it does not notice when its client has gone. The fan-out
encodes an event once; each client has a queue, and all that is in it goes out in one send. One task
sends the pings of all connections. There is no limit on how long a client may not read, and no
check of what is in an event.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

from ..expressions import code_of
from .common import PING, PLACE, SHAPE, never_waits, set_gc, start_publishing, waits
from .middleware import placed

HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]

build = code_of("raw", SHAPE).builder()

queues: set[asyncio.Queue[bytes]] = set()
stopping: set[asyncio.Future[None]] = set()
#: The ``send`` of each connection that gets pings, and the task that sends them.
pinged: set[Any] = set()
pinging: list[asyncio.Task[None]] = []


async def bare(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    path = scope["path"]
    if path == "/idle":
        await wait(receive, send)
    elif path == "/events":
        await listen(receive, send)
    elif path == "/publish":
        start_publishing(publish, scope["query_string"])
        await send({"type": "http.response.body", "body": b""})
    elif path == "/gc":
        set_gc(scope["query_string"])
        await send({"type": "http.response.body", "body": b""})
    else:
        await stream(waits(build) if path == "/wait" else never_waits(build), send)


async def stream(source: AsyncIterator[bytes], send: Any) -> None:
    async for frame in source:
        await send(body(frame))


async def publish(text: str) -> None:
    frame = f"data: {text}\n\n".encode()
    for queue in queues:
        queue.put_nowait(frame)


async def listen(receive: Any, send: Any) -> None:
    task = asyncio.ensure_future(send_what_is_published(send))
    await has_gone(receive)
    task.cancel()


async def has_gone(receive: Any) -> None:
    """Wait until the client has."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_what_is_published(send: Any) -> None:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    queues.add(queue)
    try:
        while True:
            frames = [await queue.get()]
            while not queue.empty():
                frames.append(queue.get_nowait())
            await send(body(b"".join(frames)))
    finally:
        queues.discard(queue)


async def wait(receive: Any, send: Any) -> None:
    """Nothing, until the client goes or the server is told to stop."""
    if not pinging:
        pinging.append(asyncio.ensure_future(ping()))
    pinged.add(send)
    gone: Any = asyncio.current_task()
    stopping.add(gone)
    try:
        await has_gone(receive)
    except asyncio.CancelledError:
        await send({"type": "http.response.body", "body": b""})
    finally:
        stopping.discard(gone)
        pinged.discard(send)


async def ping() -> None:
    while True:
        await asyncio.sleep(PING or 15)
        for send in list(pinged):
            await send(body(b":\n\n"))


async def lifespan(receive: Any, send: Any) -> None:
    """When the signal comes, end the streams and then let the server have it."""
    await receive()
    loop = asyncio.get_running_loop()
    servers: Any = signal.getsignal(signal.SIGTERM)

    def handler(number: int, frame: Any) -> None:
        for task in list(stopping):
            loop.call_soon_threadsafe(task.cancel)
        if callable(servers):
            servers(number, frame)

    signal.signal(signal.SIGTERM, handler)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


def body(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": True}


app = placed(bare, PLACE)
