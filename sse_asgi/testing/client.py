"""An in-process ASGI client for event streams that never end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote

import anyio
from anyio.lowlevel import checkpoint

from .. import runtime
from ..decoder import DecodedEvent, EventStreamDecoder
from ..runtime.asyncio import AsyncioRuntime

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType

    from ..types import ASGIApp, Headers, Message, Scope

__all__ = ["Connection", "connect"]

#: How many bytes the client may leave unread before ``send`` waits: the high-water mark of the
#: transports of asyncio, and so of most servers.
BUFFER_SIZE = 65536


def connect(
    app: ASGIApp,
    path: str = "/",
    *,
    method: str = "GET",
    headers: Headers | None = None,
    body: bytes = b"",
    scope: Mapping[str, Any] | None = None,
) -> Connection:
    """Return a connection to an application, as an async context manager.

    Entering it sends the request, and waits for the response to start. Leaving it disconnects, and
    waits for the application to return. Both raise what the application raises.

    :param app: the ASGI application.
    :param path: the path, percent-encoded if necessary, with or without a query string.
    :param method: the method of the request.
    :param headers: the header fields of the request, as a mapping or pairs, ``str`` or ``bytes``.
    :param body: the body of the request.
    :param scope: keys to add to the ASGI scope or to replace in it, such as ``state``. With
        ``asgi`` you choose another ``spec_version``: from 2.4 on, ``send`` raises :class:`OSError`
        after a disconnect.
    """
    raw_path, _, query = path.partition("?")
    full_scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method.upper(),
        "scheme": "http",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": _raw_headers(headers),
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 80),
        "state": {},
        **(scope or {}),
    }
    return Connection(app, full_scope, body)


class Connection:
    """The client's end of a connection: what :func:`connect` returns."""

    def __init__(self, app: ASGIApp, scope: Scope, body: bytes) -> None:
        self._app = app
        self._scope = scope
        self._request: Message | None = {
            "type": "http.request",
            "body": body,
            "more_body": False,
        }
        self._tasks = anyio.create_task_group()
        self._changed = anyio.Event()

        self._start: Message | None = None
        self._comments: list[str] = []
        self._body = bytearray()
        self._decoder = EventStreamDecoder(on_comment=self._comments.append)
        self._events: deque[tuple[DecodedEvent, int]] = deque()
        self._unread = 0

        self._stalled = False
        self._disconnected = False
        self._complete = False
        self._returned = False
        self._error: Exception | None = None

    # -- the client ------------------------------------------------------------------------------

    @property
    def status_code(self) -> int:
        """The HTTP status code of the response."""
        return int(self._started["status"])

    @property
    def headers(self) -> dict[str, str]:
        """The header fields of the response, names in lower case. The last one of a name counts."""
        return {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in self._started.get("headers", ())
        }

    @property
    def comments(self) -> list[str]:
        """The comments so far, pings included, without the space after the colon."""
        return list(self._comments)

    @property
    def last_event_id(self) -> str:
        """The value that the client would send as ``Last-Event-ID`` if it reconnected now."""
        return self._decoder.last_event_id

    @property
    def reconnection_time(self) -> int | None:
        """The last ``retry`` of the stream, in milliseconds; ``None``: there was none."""
        return self._decoder.reconnection_time

    @property
    def complete(self) -> bool:
        """Whether the response has ended regularly, by ``more_body=False``."""
        return self._complete

    @property
    def returned(self) -> bool:
        """Whether the application has returned, or raised."""
        return self._returned

    async def receive(self) -> DecodedEvent:
        """Wait for the next event, and return it.

        :raises anyio.EndOfStream: the response has ended regularly, or the client has disconnected.
        :raises anyio.IncompleteRead: the application has returned before the end of the response.
        :raises Exception: the exception that the application has raised.
        """
        while not self._events:
            if self._error is not None:
                raise self._take_error()
            if self._complete or self._disconnected:
                raise anyio.EndOfStream
            if self._returned:
                raise anyio.IncompleteRead
            await self._changed.wait()
        event, size = self._events.popleft()
        self._unread -= size
        self._notify()
        return event

    async def read(self) -> bytes:
        """Wait for the end of a response that is not an event stream, and return its body.

        :raises anyio.IncompleteRead: the application has returned before the end of the response.
        :raises Exception: the exception that the application has raised.
        """
        while not self._complete:
            if self._returned:
                raise self._take_error()
            await self._changed.wait()
        return bytes(self._body)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DecodedEvent:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    def stall(self) -> None:
        """Stop reading. From now on ``send`` waits."""
        self._stalled = True

    def resume(self) -> None:
        """Go on reading."""
        self._stalled = False
        self._notify()

    async def disconnect(self) -> None:
        """Disconnect, and wait until the application has returned."""
        self._disconnected = True
        self._notify()
        while not self._returned:
            await self._changed.wait()

    # -- the context manager ---------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        try:
            self._tasks.start_soon(self._run)
            while self._start is None and not self._returned:
                await self._changed.wait()
            if self._start is None:
                raise self._take_error()
        except BaseException:
            self._tasks.cancel_scope.cancel()
            await self._tasks.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc is None:
                await self.disconnect()
        finally:
            self._tasks.cancel_scope.cancel()
            await self._tasks.__aexit__(None, None, None)
        if exc is None and self._error is not None:
            raise self._take_error()

    def _take_error(self) -> Exception:
        """Return the exception of the application, once, or say that it returned too early."""
        error, self._error = self._error, None
        return error or anyio.IncompleteRead()

    # -- the server ------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await _in_a_bare_task(self._serve())
        except Exception as exc:
            self._error = exc
        finally:
            self._returned = True
            self._notify()

    async def _serve(self) -> None:
        await self._app(self._scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self._request is not None:
            message, self._request = self._request, None
            return message
        while not (self._disconnected or self._complete):
            await self._changed.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await checkpoint()
        while (self._stalled or self._unread >= BUFFER_SIZE) and not self._disconnected:
            await self._changed.wait()
        if self._disconnected:
            if self._scope["asgi"].get("spec_version", "2.0") >= "2.4":
                raise OSError("the client has disconnected")
            return
        if message["type"] == "http.response.start":
            if self._start is not None:
                raise RuntimeError("the response has started already")
            self._start = message
        elif message["type"] == "http.response.body":
            self._send_body(message)
        else:
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}")
        self._notify()

    def _send_body(self, message: Message) -> None:
        if self._start is None:
            raise RuntimeError("the response has not started")
        if self._complete:
            raise RuntimeError("the response is complete")
        body = message.get("body", b"")
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            events = self._decoder.feed(body)
            # The bytes of a message count as unread until its last event is read.
            for number, event in enumerate(events, start=1):
                self._events.append((event, len(body) if number == len(events) else 0))
            self._unread += len(body) if events else 0
        else:
            self._body += body
        self._complete = not message.get("more_body", False)

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    @property
    def _started(self) -> Message:
        if self._start is None:
            raise RuntimeError("enter the connection first: async with connect(...) as stream")
        return self._start


async def _in_a_bare_task(application: Coroutine[Any, Any, None]) -> None:
    """Run an application as servers do: on asyncio, in a task that anyio does not know."""
    if not isinstance(runtime.current(), AsyncioRuntime):
        await application
        return
    task = asyncio.ensure_future(application)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([task])
        raise
    finally:
        if task.done() and not task.cancelled():
            await task


def _raw_headers(headers: Headers | None) -> list[tuple[bytes, bytes]]:
    pairs: Any = headers.items() if isinstance(headers, Mapping) else headers or ()
    return [(_latin1(name).lower(), _latin1(value)) for name, value in pairs]


def _latin1(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1")
