"""The demo as an ASGI application: a page, and the event streams that it shows."""

from __future__ import annotations

import json
import os
import time
from contextlib import aclosing
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from sse_asgi import ServerSentEvent, SSERequest, sse_app
from sse_asgi.hub import Hub

from .machine import describe, samples
from .tail import tail

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from sse_asgi.types import ASGIApp, EventLike, Receive, Scope, Send

__all__ = ["create_app"]

PAGE_HEADERS = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-cache")]
TEXT_HEADERS = [(b"content-type", b"text/plain; charset=utf-8")]

#: Messages on the wall that are kept, and how many of them a new client gets.
KEPT, HISTORY = 200, 50
#: The longest message, and the longest body with one: in characters, in bytes.
LONGEST, LARGEST = 500, 8192


def create_app(log_file: str | None = None, *, ping: float = 15.0) -> ASGIApp:
    """Make the demo: a page, and what it shows.

    The page is at ``/``, and reads ``/events``: the machine, and the wall, where everybody sees
    what anybody posts to ``/say``. The log file is at ``/log``.

    :param log_file: the file whose lines ``/log`` streams; without one there is no ``/log``.
    :param ping: seconds of silence after which a stream sends a comment; 0: never.
    """
    hub = Hub(max_events=KEPT)

    # One stream for all: a browser has six connections to a server, and its tabs share them.
    # A sample that was missed is of no use, and has no id; messages have those of the hub.
    async def events(request: SSERequest) -> AsyncGenerator[EventLike, None]:
        wall = hub.subscribe("wall", last_event_id=request.last_event_id, history=HISTORY)
        machine = await anyio.to_thread.run_sync(describe)
        yield ServerSentEvent({**machine, "log": log_name}, event="machine")
        async with aclosing(_merged(_sampled(), wall)) as merged:
            async for event in merged:
                yield event

    async def say(scope: Scope, receive: Receive, send: Send) -> None:
        status, answer = await _publish(hub, scope, receive)
        headers = [*TEXT_HEADERS, (b"allow", b"POST")] if status == 405 else TEXT_HEADERS
        await _respond(scope, send, status, headers, f"{answer}\n".encode())

    def log(request: SSERequest) -> AsyncGenerator[ServerSentEvent, None]:
        assert log_file is not None
        return tail(log_file, request.last_event_id)

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        await _respond(scope, send, 200, PAGE_HEADERS, page_body)

    # A file's name need not be text.
    log_name = log_file and os.fsencode(log_file).decode("utf-8", "replace")
    page_body = files("sse_asgi.demo").joinpath("index.html").read_bytes()

    # A second after it has lost us, a browser tries again.
    events_app = sse_app(events, ping=ping, retry=1000)
    routes: dict[str, ASGIApp] = {"/": page, "/events": events_app, "/say": say}
    if log_file is not None:
        routes["/log"] = sse_app(log, ping=ping, retry=1000)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await routes.get(scope["path"], _not_found)(scope, receive, send)
        else:  # lifespan; and websockets, which it refuses
            await events_app(scope, receive, send)

    return app


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await _respond(scope, send, 404, TEXT_HEADERS, b"Not Found\n")


async def _respond(
    scope: Scope, send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def _publish(hub: Hub, scope: Scope, receive: Receive) -> tuple[int, str]:
    """Put the message of a request on the wall; return a status, and the id or what is wrong."""
    if scope["method"] != "POST":
        return 405, "Method Not Allowed"
    # No page of another site can send this type without asking first, and nobody would answer.
    media_type = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0]
    if media_type.strip().lower() != b"application/json":
        return 415, "this takes application/json"
    body, more = b"", True
    while more and len(body) <= LARGEST:
        part = await receive()
        # One who has left gets no answer, whatever it is.
        body += part.get("body", b"")
        more = part.get("more_body", False)
    if len(body) > LARGEST:
        return 413, f"this takes at most {LARGEST} bytes"
    try:
        text, key = _message(json.loads(body))
        said = {"text": text, "time": round(time.time(), 3)}
        # The key is the client's: who does not know whether it was heard says the same again.
        return 201, await hub.publish("wall", {"event": "said", "data": said}, key=key)
    except (TypeError, ValueError, RecursionError):
        wanted = f'{{"text": 1 to {LONGEST} characters, "key": at most 64, or none}}'
        return 400, f"this takes {wanted}"


def _message(value: Any) -> tuple[str, str | None]:
    """Return the text of a message, and its key.

    :raises ValueError: it is not one.
    """
    text, key = (value.get("text"), value.get("key")) if isinstance(value, dict) else (None, None)
    if not isinstance(text, str) or not 0 < len(text := text.strip()) <= LONGEST:
        raise ValueError("text")
    if key is not None and not (isinstance(key, str) and len(key) <= 64):
        raise ValueError("key")
    return text, key


async def _sampled() -> AsyncGenerator[ServerSentEvent, None]:
    async with aclosing(samples()) as measured:
        async for sample in measured:
            yield ServerSentEvent(sample, event="sample")


async def _merged(*sources: AsyncIterator[EventLike]) -> AsyncGenerator[EventLike, None]:
    """The events of several sources, as they come."""
    send, receive = anyio.create_memory_object_stream[Any](0)

    async def read(source: Any) -> None:
        async with aclosing(source):
            async for event in source:
                await send.send(event)

    async with send, receive, anyio.create_task_group() as tasks:
        for source in sources:
            tasks.start_soon(read, source)
        async for event in receive:
            yield event
