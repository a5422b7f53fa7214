"""The demo as an ASGI application: a page, and the event streams that it shows."""

from __future__ import annotations

import os
from contextlib import aclosing
from importlib.resources import files
from typing import TYPE_CHECKING

import anyio.to_thread

from sse_asgi import ServerSentEvent, SSERequest, sse_app

from .machine import describe, samples
from .tail import tail

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sse_asgi.types import ASGIApp, Receive, Scope, Send

__all__ = ["create_app"]

PAGE_HEADERS = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-cache")]


def create_app(log_file: str | None = None, *, ping: float = 15.0) -> ASGIApp:
    """Make the demo: the page at ``/``, the machine at ``/stats``, the log file at ``/log``.

    :param log_file: the file whose lines ``/log`` streams; without one there is no ``/log``.
    :param ping: seconds of silence after which a stream sends a comment; 0: never.
    """

    async def stats(request: SSERequest) -> AsyncGenerator[ServerSentEvent, None]:
        machine = await anyio.to_thread.run_sync(describe)
        # The id counts the samples. A browser that comes back says which one it had last.
        number = _number(request.last_event_id)
        yield ServerSentEvent({**machine, "log": log_name}, event="machine", id=number)
        async with aclosing(samples()) as measured:
            async for sample in measured:
                number += 1
                yield ServerSentEvent(sample, event="sample", id=number)

    def log(request: SSERequest) -> AsyncGenerator[ServerSentEvent, None]:
        assert log_file is not None
        return tail(log_file, request.last_event_id)

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        await _respond(scope, send, 200, PAGE_HEADERS, page_body)

    # A file's name need not be text.
    log_name = log_file and os.fsencode(log_file).decode("utf-8", "replace")
    page_body = files("sse_asgi.demo").joinpath("index.html").read_bytes()

    # A second after it has lost us, a browser tries again.
    stats_app = sse_app(stats, ping=ping, retry=1000)
    routes: dict[str, ASGIApp] = {"/": page, "/stats": stats_app}
    if log_file is not None:
        routes["/log"] = sse_app(log, ping=ping, retry=1000)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await routes.get(scope["path"], _not_found)(scope, receive, send)
        else:  # lifespan; and websockets, which it refuses
            await stats_app(scope, receive, send)

    return app


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await _respond(scope, send, 404, headers, b"Not Found\n")


async def _respond(
    scope: Scope, send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _number(last_event_id: str | None) -> int:
    """Return the count that a client's id stands for; 0 if it stands for none."""
    text = last_event_id or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else 0
