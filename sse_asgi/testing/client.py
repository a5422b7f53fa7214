"""An in-process ASGI client for event streams that never end."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote

import anyio
from anyio.lowlevel import checkpoint

from ..decoder import DEFAULT_MAX_EVENT_SIZE, DecodedEvent, EventStreamDecoder
from ..errors import EventTooLargeError
from ..runtime import current
from ..runtime.detached import DetachedTask

if TYPE_CHECKING:
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
    max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
) -> Connection:
    """Return a connection to an application, as an async context manager.

    Entering it sends the request, and waits for the response to start. Leaving it disconnects, and
    waits for the application to return. Both raise what the application raises. A connection may be
    entered in one task and left in another, as a fixture of pytest-asyncio is.

    The application runs in a task of its own. If the block is left with an exception, for example
    because the test was cancelled, then the application is cancelled.

    :param app: the ASGI application.
    :param path: the path, percent-encoded if necessary, with or without a query string.
    :param method: the method of the request.
    :param headers: the header fields of the request, as a mapping or pairs, ``str`` or ``bytes``.
        If there is no ``Host``, the ``server`` of the scope is sent as one: ``testserver``.
    :param body: the body of the request.
    :param scope: keys to add to the ASGI scope or to replace in it, such as ``state``. With
        ``asgi`` you choose another ``spec_version``: from 2.4 on, ``send`` raises :class:`OSError`
        after a disconnect.
    :param max_event_size: in bytes, how large an event may be (1 MiB). A larger one is an error of
        :meth:`Connection.receive`.
    :raises TypeError: ``app`` is not an ASGI application.
    :raises ValueError: for a ``max_event_size`` less than 1.
    """
    _check_application(app)
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
    if not any(name == b"host" for name, _ in full_scope["headers"]):
        full_scope["headers"] = [(b"host", _host(full_scope)), *full_scope["headers"]]
    return Connection(app, full_scope, body, max_event_size)


class Connection:
    """The client's end of a connection: what :func:`connect` returns."""

    def __init__(self, app: ASGIApp, scope: Scope, body: bytes, max_event_size: int) -> None:
        self._app = app
        self._scope = scope
        self._request: Message | None = {
            "type": "http.request",
            "body": body,
            "more_body": False,
        }
        self._task: DetachedTask | None = None
        self._changed = anyio.Event()

        self._start: Message | None = None
        self._comments: list[str] = []
        self._body = bytearray()
        self._decoder = EventStreamDecoder(
            max_event_size=max_event_size, on_comment=self._comments.append
        )
        self._too_large: EventTooLargeError | None = None
        self._events: deque[tuple[DecodedEvent, int]] = deque()
        self._unread = 0

        self._stalled = False
        self._disconnected = False
        self._complete = False
        self._returned = False

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
        :raises EventTooLargeError: the next event is larger than ``max_event_size``. What comes
            after it is lost too, so each later call raises this again.
        :raises BaseException: the exception that the application has raised.
        """
        while not self._events:
            if self._too_large is not None:
                raise self._too_large.with_traceback(None)
            if (error := self._take_error()) is not None:
                raise error
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
        :raises BaseException: the exception that the application has raised.
        """
        while not self._complete:
            if self._returned:
                raise self._take_error() or anyio.IncompleteRead
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
        if self._task is not None:
            raise RuntimeError("a connection is entered once: call connect() again")
        self._task = DetachedTask(current(), self._run)
        try:
            while self._start is None and not self._returned:
                await self._changed.wait()
        except BaseException:
            await self._cancel()
            raise
        if self._start is None:
            raise self._take_error() or anyio.IncompleteRead
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
            await self._cancel()
        if exc is None and (error := self._take_error()) is not None:
            raise error

    async def _cancel(self) -> None:
        """Cancel the application, unless it has returned, and wait until it has."""
        if self._task is not None:
            self._task.cancel()
            await self._task.join()

    def _take_error(self) -> BaseException | None:
        """Return the exception of the application, once."""
        if self._task is None or self._task.error is None:
            return None
        error, self._task.error = self._task.error, None
        return error

    # -- the server ------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        finally:
            self._returned = True
            self._notify()

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
            self._decode(body)
        else:
            self._body += body
        self._complete = not message.get("more_body", False)

    def _decode(self, body: bytes) -> None:
        if self._too_large is not None:
            return
        try:
            events = self._decoder.feed(body)
            # The bytes of a message count as unread until its last event is read.
            for number, event in enumerate(events, start=1):
                self._events.append((event, len(body) if number == len(events) else 0))
            self._unread += len(body) if events else 0
            self._decoder.feed(b"")  # raises if an event after these was too large
        except EventTooLargeError as exc:
            # An error of the test, not of the application, which sends on.
            self._too_large = EventTooLargeError(f"{exc}: see connect(..., max_event_size=...)")

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    @property
    def _started(self) -> Message:
        if self._start is None:
            raise RuntimeError("enter the connection first: async with connect(...) as stream")
        return self._start


def _check_application(app: object) -> None:
    """Refuse what is not an ASGI application, above all what :func:`~sse_asgi.sse_app` takes.

    :raises TypeError: it is not.
    """
    if not callable(app):
        name = getattr(app, "__qualname__", type(app).__qualname__)
        raise TypeError(
            f"connect() needs an ASGI application, not {app!r:.80}: for a generator function "
            f"{name!r}, pass sse_app({name}), and do not call the function"
            if inspect.isgenerator(app) or inspect.isasyncgen(app) or inspect.iscoroutine(app)
            else f"connect() needs an ASGI application, which is callable, not {app!r:.80}"
        )
    try:
        signature = inspect.signature(app)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    try:
        signature.bind("scope", "receive", "send")
    except TypeError:
        name = getattr(app, "__qualname__", type(app).__qualname__)
        raise TypeError(
            f"connect() needs an ASGI application, which takes scope, receive and send, and {name} "
            f"takes {signature}: pass sse_app({name}) if it makes events, or the application that "
            f"it is a route of"
        ) from None


def _host(scope: Scope) -> bytes:
    """Return the ``Host`` that a client sends to the ``server`` of a scope (RFC 9110, 7.2)."""
    host, port = scope.get("server") or ("testserver", None)
    if ":" in host:
        host = f"[{host}]"
    default = {"http": 80, "https": 443}.get(scope["scheme"])
    return f"{host}:{port}".encode() if port not in (None, default) else host.encode()


def _raw_headers(headers: Headers | None) -> list[tuple[bytes, bytes]]:
    pairs: Any = headers.items() if isinstance(headers, Mapping) else headers or ()
    return [(_latin1(name).lower(), _latin1(value)) for name, value in pairs]


def _latin1(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1")
