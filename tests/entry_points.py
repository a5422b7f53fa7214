"""The ways into a stream, all called like ``sse_app``: tests of a stream run through each of them.

What a framework does differently is not a stream's business; a test of something that only
``sse_app`` has is marked ``sse_app_only``.
"""

from __future__ import annotations

import inspect
import zlib
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from sse_asgi import SSERequest, sse_app
from sse_asgi.starlette import EventSourceResponse, SendTimeoutError

#: Where the defaults of the response are those of sse-starlette.
DEFAULTS: dict[str, Any] = {"sep": "\n", "send_timeout": 30.0, "cleanup_timeout": 5.0}

METHODS = ["GET", "HEAD", "POST"]


class Endpoint:
    """Answers each request with a response from what a factory gives."""

    def __init__(self, factory: Any, options: dict[str, Any]) -> None:
        self.factory = factory
        self.options = {**DEFAULTS, **options}
        if self.options.get("ping", 0) is None:  # which means the default there
            self.options["ping"] = 0

    async def __call__(self, request: Request) -> EventSourceResponse:
        takes_request = inspect.signature(self.factory).parameters
        source = self.factory(SSERequest(request.scope)) if takes_request else self.factory()
        if inspect.isawaitable(source):
            source = await source
        return EventSourceResponse(source, **self.options)


def without_send_timeout_error(app: Any) -> Any:
    """The response of sse-starlette raises what ``sse_app`` only reports."""

    async def wrapper(*args: Any) -> None:
        try:
            await app(*args)
        except SendTimeoutError:
            pass

    return wrapper


def starlette_app(factory: Any, **options: Any) -> Any:
    endpoint = Endpoint(factory, options)

    async def route(request: Request) -> EventSourceResponse:
        return await endpoint(request)

    return without_send_timeout_error(
        Starlette(routes=[Route("/{path:path}", route, methods=METHODS)])
    )


def fastapi_app(factory: Any, **options: Any) -> Any:
    from fastapi import FastAPI  # takes most of a second, and servers start often

    endpoint = Endpoint(factory, options)
    app = FastAPI()

    @app.api_route("/{path:path}", methods=METHODS, response_class=EventSourceResponse)
    async def route(request: Request) -> Any:
        return await endpoint(request)

    return without_send_timeout_error(app)


def sse_app_in_a_scope(factory: Any, **options: Any) -> Any:
    """Where a middleware has a cancel scope around the application."""
    app = sse_app(factory, **options)

    async def wrapper(*args: Any) -> None:
        with anyio.CancelScope():
            await app(*args)

    return wrapper


def compressed_sse_app(factory: Any, **options: Any) -> Any:
    """With compression, which nobody notices: it is undone before the messages are sent."""
    app = sse_app(factory, compression="gzip", **options)

    async def wrapper(scope: Any, receive: Any, send: Any) -> None:
        decompressor: Any = None

        async def send_decompressed(message: Any) -> None:
            nonlocal decompressor
            if message["type"] == "http.response.start":
                headers = dict(message["headers"])
                if headers.pop(b"content-encoding", None):
                    assert headers.pop(b"vary") == b"accept-encoding"
                    if scope["method"].upper() != "HEAD":
                        decompressor = zlib.decompressobj(16 + zlib.MAX_WBITS)
                    message = {**message, "headers": list(headers.items())}
                await send(message)
            elif decompressor is None:
                await send(message)
            else:
                after = decompressor.copy()
                body = after.decompress(message["body"])
                assert after.eof is not message["more_body"]
                await send({**message, "body": body})
                decompressor = after

        if scope["type"] == "http":
            accepts = (b"accept-encoding", b"gzip")
            scope = {**scope, "headers": [*scope["headers"], accepts]}
        await app(scope, receive, send_decompressed)

    return wrapper


ENTRY_POINTS: dict[str, Any] = {
    "sse_app": sse_app,
    "in a scope": sse_app_in_a_scope,
    "starlette": starlette_app,
    "fastapi": fastapi_app,
    "compressed": compressed_sse_app,
}
