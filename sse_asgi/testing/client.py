"""An in-process ASGI client for event streams that never end."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import anyio

from ..decoder import DEFAULT_MAX_EVENT_SIZE, DecodedEvent, EventStreamDecoder
from ..errors import EventTooLargeError
from .call import BUFFER_SIZE, AppCall, check_application, http_scope
from .decompression import decompressor

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from ..types import ASGIApp, Headers, Message, Scope

__all__ = ["Connection", "connect"]


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
        With ``accept-encoding`` a response may be compressed, and is decompressed here.
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
    check_application(app, "connect")
    raw_path, _, query = path.partition("?")
    full_scope = http_scope(
        method.upper(), raw_path.encode(), query.encode(), _raw_headers(headers), scope
    )
    if not any(name == b"host" for name, _ in full_scope["headers"]):
        full_scope["headers"] = [(b"host", _host(full_scope)), *full_scope["headers"]]
    return Connection(app, full_scope, body, max_event_size)


class Connection:
    """The client's end of a connection: what :func:`connect` returns."""

    def __init__(self, app: ASGIApp, scope: Scope, body: bytes, max_event_size: int) -> None:
        self._call = AppCall(app, scope, is_full=self._is_full, on_body=self._on_body)
        self._call.feed(body)
        self._call.end_request()
        self._comments: list[str] = []
        self._body = bytearray()
        self._decoder = EventStreamDecoder(
            max_event_size=max_event_size, on_comment=self._comments.append
        )
        self._too_large: EventTooLargeError | None = None
        self._events: deque[tuple[DecodedEvent, int]] = deque()
        self._unread = 0

        self._decompress: Callable[[bytes], bytes] | None = None
        self._stalled = False

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
        return self._call.complete

    @property
    def returned(self) -> bool:
        """Whether the application has returned, or raised."""
        return self._call.returned

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
            if (error := self._call.take_error()) is not None:
                raise error
            if self._call.complete or self._call.disconnected:
                raise anyio.EndOfStream
            if self._call.returned:
                raise anyio.IncompleteRead
            await self._call.wait_for_change()
        event, size = self._events.popleft()
        self._unread -= size
        self._call.notify()
        return event

    async def read(self) -> bytes:
        """Wait for the end of a response that is not an event stream, and return its body.

        :raises anyio.IncompleteRead: the application has returned before the end of the response.
        :raises BaseException: the exception that the application has raised.
        """
        while not self._call.complete:
            if self._call.returned:
                raise self._call.take_error() or anyio.IncompleteRead
            await self._call.wait_for_change()
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
        self._call.notify()

    async def disconnect(self) -> None:
        """Disconnect, and wait until the application has returned."""
        self._call.disconnect()
        await self._call.wait_until_returned()

    # -- the context manager ---------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._call.running:
            raise RuntimeError("a connection is entered once: call connect() again")
        self._call.run()
        try:
            while self._call.start is None and not self._call.returned:
                await self._call.wait_for_change()
        except BaseException:
            await self._call.cancel()
            raise
        if self._call.start is None:
            raise self._call.take_error() or anyio.IncompleteRead
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
            await self._call.cancel()
        if exc is None and (error := self._call.take_error()) is not None:
            raise error

    # -- the body --------------------------------------------------------------------------------

    def _is_full(self) -> bool:
        return self._stalled or self._unread >= BUFFER_SIZE

    def _on_body(self, body: bytes) -> None:
        if self._decompress is None:
            self._decompress = decompressor(self.headers.get("content-encoding", ""))
        if body:
            body = self._decompress(body)
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            self._decode(body)
        else:
            self._body += body
        self._call.notify()

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

    @property
    def _started(self) -> Message:
        if self._call.start is None:
            raise RuntimeError("enter the connection first: async with connect(...) as stream")
        return self._call.start


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
