"""What it costs to send an event to 500 streams: the hub, compared with a queue for each client.

In process, on asyncio; the server is a ``send`` that does nothing. With sse-starlette there is
what people build on it: an ``asyncio.Queue`` each, and a list of what came before to replay.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from sse_asgi import sse_app
from sse_asgi.hub import Hub

from .measure import interleave, table
from .pump import SCOPE

STREAMS = 500

#: Streams that catch up at once, and how many events each is behind.
LATE, BEHIND = 10, 10_000

LAST = "the last"


class OverHub:
    """``sse_app`` over a hub."""

    def __init__(self) -> None:
        hub = self._hub = Hub(max_events=BEHIND, max_bytes=2**24)
        self._app = sse_app(lambda request: hub.subscribe("t", last_event_id=request.last_event_id))

    def make(self) -> Any:
        return self._app

    async def publish(self, event: str) -> str:
        return await self._hub.publish("t", event)


class Queues:
    """A queue each, and the newest events in a list."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[dict[str, str]]] = set()
        self._history: list[dict[str, str]] = []

    def make(self) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            source = self._source(dict(scope["headers"]).get(b"last-event-id"))
            await self._respond(source, scope, receive, send)

        return app

    async def publish(self, event: str) -> str:
        number = str(len(self._history) + 1)
        fields = {"id": number, "data": event}
        self._history.append(fields)
        for queue in self._queues:
            await queue.put(fields)  # which does not wait
        return number

    async def _source(self, after: bytes | None) -> AsyncIterator[dict[str, str]]:
        queue: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._queues.add(queue)
        try:
            if after is not None:
                for fields in self._history[int(after) :]:
                    yield fields
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)

    async def _respond(self, source: Any, scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError


class QueuesOverSSEStarlette(Queues):
    async def _respond(self, source: Any, scope: Any, receive: Any, send: Any) -> None:
        response = importlib.import_module("sse_starlette").EventSourceResponse(source)
        await response(scope, receive, send)


class QueuesOverBareLoop(Queues):
    """Nothing but the loop: no ping, no send timeout, no eye on the client."""

    async def _respond(self, source: Any, scope: Any, receive: Any, send: Any) -> None:
        async def pump() -> None:
            async for fields in source:
                frame = f"id: {fields['id']}\ndata: {fields['data']}\n\n".encode()
                await send({"type": "http.response.body", "body": frame, "more_body": True})

        task = asyncio.ensure_future(pump())
        await receive()
        task.cancel()


class QueuesOverSSEApp(Queues):
    async def _respond(self, source: Any, scope: Any, receive: Any, send: Any) -> None:
        await sse_app(lambda: source)(scope, receive, send)


class Clients:
    """Streams that are open, and how many have had the last event."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._had = self.sends = 0
        self.all_had = asyncio.Event()
        self._gone = asyncio.Event()
        self._streams: list[asyncio.Future[None]] = []

    async def open(self, make: Callable[[], Any], headers: Any = ()) -> None:
        self._streams = [
            asyncio.ensure_future(make()({**SCOPE, "headers": headers}, self._receive, self._send))
            for _ in range(self._count)
        ]

    def forget(self) -> None:
        """Wait for the next last event."""
        self._had = 0
        self.all_had.clear()

    async def close(self) -> None:
        self._gone.set()
        await asyncio.gather(*self._streams)

    async def _receive(self) -> Any:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sends += 1
        if LAST.encode() in message.get("body", b"")[-16:]:
            self._had += 1
            if self._had == self._count:
                self.all_had.set()


async def fan_out(make_server: Callable[[], Any], events: int, pause: float) -> float:
    """µs of processor time a delivery, with so many seconds between events."""
    server = make_server()
    clients = Clients(STREAMS)
    await clients.open(server.make)
    await asyncio.sleep(0.2)
    began = time.process_time()
    for number in range(events - 1):
        await server.publish(str(number))
        if pause:
            await asyncio.sleep(pause)
    await server.publish(LAST)
    await clients.all_had.wait()
    took = time.process_time() - began
    await clients.close()
    return took / events / STREAMS * 1e6


async def catch_up(make_server: Callable[[], Any], sends: Callable[[float], object]) -> float:
    """µs of processor time an event, for streams that are far behind."""
    server = make_server()
    first = await server.publish("0")
    for number in range(1, BEHIND):
        await server.publish(str(number))
    await server.publish(LAST)
    clients = Clients(LATE)
    began = time.process_time()
    await clients.open(server.make, [(b"last-event-id", first.encode())])
    await clients.all_had.wait()
    took = time.process_time() - began
    sends(clients.sends / LATE)
    await clients.close()
    return took / BEHIND / LATE * 1e6


def in_loop(function: Callable[..., Awaitable[float]], *args: Any) -> Callable[[], float]:
    return lambda: asyncio.run(function(*args))  # type: ignore[arg-type]


def main() -> None:
    servers: dict[str, Callable[[], Any]] = {
        "sse_app, hub": OverHub,
        "sse_app, a queue each": QueuesOverSSEApp,
        "bare loop, a queue each": QueuesOverBareLoop,
    }
    if importlib.util.find_spec("sse_starlette"):
        servers["sse-starlette, a queue each"] = QueuesOverSSEStarlette
    else:
        print("(sse-starlette is not installed: no comparison with it)")

    for title, events, pause in (("flat out", 200, 0.0), ("20 events/s", 20, 0.05)):
        figures = interleave(
            {name: in_loop(fan_out, server, events, pause) for name, server in servers.items()},
            rounds=5,
        )
        title = f"fan-out to {STREAMS} streams, {title}"
        print(table(title, figures, base="sse_app, hub", operation="a delivery"))
        for name, figure in figures.items():
            print(f"  {name:<34} {1e6 / figure.median:9,.0f} deliveries a second of it")

    sends: dict[str, float] = {}
    candidates = {}
    for name, server in servers.items():
        note = lambda count, name=name: sends.update({name: count})  # noqa: E731
        candidates[name] = in_loop(catch_up, server, note)
    figures = interleave(candidates, rounds=3)
    print(table(f"catching up with {BEHIND:,} events, {LATE} streams", figures, "sse_app, hub"))
    for name, count in sends.items():
        print(f"  {name:<34} {count:9,.0f} sends a stream")
