"""A transport between a client of httpx or httpx2 and an application in the same process."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import anyio

from .call import BUFFER_SIZE, AppCall, check_application, http_scope

if TYPE_CHECKING:
    from types import ModuleType, TracebackType

    import httpx
    import httpx2

    from ..types import ASGIApp, Message, Scope

    class _AsyncBaseTransport(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):
        async def __aenter__(self) -> Self: ...
        async def handle_async_request(self, request: Any) -> Any: ...

else:
    # Type checkers ask for the base class, the clients for its methods alone. So neither of the
    # two libraries is loaded for somebody who uses the other one.
    _AsyncBaseTransport = object

__all__ = ["Transport", "transport"]


def transport(
    app: ASGIApp, *, scope: Mapping[str, Any] | None = None, cleanup_timeout: float = 5.0
) -> Transport:
    """Return a transport for the ``AsyncClient`` of httpx and of httpx2.

    Its requests go to an application in the same process and event loop, on asyncio or trio::

        async with httpx.AsyncClient(transport=transport(app), base_url="http://test") as client:
            async with client.stream("GET", "/clock") as response:
                ...

    A response begins when the application starts it, and ``send`` waits while one message of its
    body is unread, so a stream may be endless. When the client leaves a response before its end,
    the application is told that it has disconnected. Leaving a response waits for the application
    to return, so its cleanup is done then.

    Each request runs the application in a task of its own, with the context variables of the task
    that sends the request. A client may be entered in one task and left in another, or not entered
    at all. Close it in the end.

    What the application raises comes out unchanged: of the request before the response has started,
    of reading the response afterwards, and else of leaving it. If another exception comes out there
    already, then it comes out of closing the client, unless an exception leaves the block of the
    client too.

    The timeouts ``read`` and ``write`` of the client apply, ``connect`` and ``pool`` have nothing
    to wait for. The transport runs no lifespan.

    :param app: the ASGI application.
    :param scope: keys to add to the ASGI scope of each request or to replace in it, such as
        ``state`` or ``root_path``. Each request gets a copy of ``state``. With ``asgi`` you choose
        another ``spec_version``: from 2.4 on, ``send`` raises :class:`OSError` after a disconnect.
    :param cleanup_timeout: in seconds, how long to wait for the application to return when the
        client leaves a response (5). An application that takes longer runs on. It is cancelled
        when the client is closed, after the same time.
    :raises TypeError: ``app`` is not an ASGI application.
    :raises ValueError: for a negative ``cleanup_timeout``.
    """
    check_application(app, "transport")
    if not cleanup_timeout >= 0:
        raise ValueError(f"cleanup_timeout must be at least 0 seconds, not {cleanup_timeout!r}")
    return Transport(app, dict(scope or {}), cleanup_timeout)


class Transport(_AsyncBaseTransport):
    """What :func:`transport` returns: an ``AsyncBaseTransport`` of httpx and of httpx2."""

    def __init__(self, app: ASGIApp, scope: dict[str, Any], cleanup_timeout: float) -> None:
        self._app = app
        self._scope = scope
        self._cleanup_timeout = cleanup_timeout
        self._exchanges: set[_Exchange] = set()  # those whose application may still run
        self._errors: list[BaseException] = []  # of applications, and not raised yet

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request, and return the response when it has started.

        :param request: an ``httpx.Request`` or an ``httpx2.Request``.
        :returns: a ``Response`` of the same library. Close it.
        :raises BaseException: the exception that the application has raised.

        Other exceptions are those of the library: ``ReadTimeout``, ``WriteTimeout``,
        ``UnsupportedProtocol`` for a URL that is not one of HTTP, and ``RemoteProtocolError`` if
        the application returns before it starts the response.
        """
        library = _library_of(request)
        exchange = _Exchange(self._app, self._scope_of(request, library), request, library)
        self._exchanges.add(exchange)
        exchange.call.run()
        try:
            await exchange.send_request()
            start = await exchange.wait_for_start()
            return library.Response(
                start["status"],
                headers=[(bytes(name), bytes(value)) for name, value in start.get("headers", ())],
                stream=_stream_class(library)(exchange, self._leave),
                extensions={"http_version": b"HTTP/1.1"},
            )
        except BaseException:
            await self._leave(exchange)
            raise

    async def aclose(self) -> None:
        """Disconnect what is open, and wait for its end. What does not end is cancelled.

        :raises BaseException: what applications have raised and nobody has been told of. Several
            come as a group.
        """
        await self._end_all()
        self._raise_errors()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._end_all()
        if exc_value is None:
            self._raise_errors()

    async def _end_all(self) -> None:
        exchanges, self._exchanges = self._exchanges, set()
        for exchange in exchanges:
            exchange.disconnect()
        try:
            async with AsyncExitStack() as stack:
                for exchange in exchanges:
                    stack.push_async_callback(exchange.call.cancel)
                with anyio.move_on_after(self._cleanup_timeout, shield=True):
                    for exchange in exchanges:
                        await exchange.call.wait_until_returned()
        finally:
            for exchange in exchanges:
                if (error := exchange.call.take_error()) is not None:
                    self._errors.append(error)

    def _raise_errors(self) -> None:
        errors, self._errors = self._errors, []
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup("the application failed in several requests", errors)

    async def _leave(self, exchange: _Exchange) -> None:
        """Tell the application that the client has gone, and wait some time for its end."""
        with anyio.move_on_after(self._cleanup_timeout, shield=True):
            await exchange.wait_for_end_without_body()
        exchange.disconnect()
        with anyio.move_on_after(self._cleanup_timeout, shield=True):
            await exchange.call.wait_until_returned()
        if not exchange.call.returned:
            return
        self._exchanges.discard(exchange)
        if (error := exchange.call.take_error()) is not None:
            if sys.exception() is None:
                raise error
            self._errors.append(error)

    def _scope_of(self, request: Any, library: ModuleType) -> Scope:
        url = request.url
        if url.scheme not in ("http", "https"):
            raise library.UnsupportedProtocol(
                f"a request needs a URL that begins with http:// or https://, not {str(url)!r}: "
                f"give the client a base_url"
            )
        path, _, query = url.raw_path.partition(b"?")
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        own = {"scheme": url.scheme, "server": (url.host, port)}
        scope = http_scope(request.method, path, query, headers, own | self._scope)
        scope["state"] = dict(scope["state"])
        return scope


class _Exchange:
    """A request and its response, from the side of the client."""

    def __init__(self, app: ASGIApp, scope: Scope, request: Any, library: ModuleType) -> None:
        self.call = AppCall(app, scope, is_full=self._is_full, on_body=self._on_body)
        self._request = request
        self._library = library
        self._timeouts: Mapping[str, float | None] = request.extensions.get("timeout", {})
        self._part: bytes | None = None  # of the body of the response, not read yet

    def _is_full(self) -> bool:
        return self._part is not None

    def _on_body(self, body: bytes) -> None:
        if body and not self._has_no_body:
            self._part = body
            self.call.notify()

    @property
    def _has_no_body(self) -> bool:
        """Whether the response has none, whatever the application sends (RFC 9110, 6.4.1)."""
        status = 0 if self.call.start is None else self.call.start["status"]
        return self._request.method == "HEAD" or status in (204, 304)

    async def send_request(self) -> None:
        """Send the body of the request, as fast as the application receives it.

        As HTTP/1 has it, the response waits for the end of it; but not if the response is over.
        """
        parts = aiter(self._request.stream)
        try:
            async for part in parts:
                await self._wait(
                    "write", lambda: self._is_over or self.call.unreceived < BUFFER_SIZE
                )
                if self._is_over:
                    return
                self.call.feed(part)
            self.call.end_request()
        finally:
            if isinstance(parts, AsyncGenerator):
                await parts.aclose()

    async def wait_for_start(self) -> Message:
        """Wait for the start of the response, and return the message."""
        await self._wait("read", lambda: self.call.start is not None or self._is_over)
        if self.call.start is None:
            raise self._end() or self._library.RemoteProtocolError("there is no response")
        return self.call.start

    async def read(self) -> bytes | None:
        """Wait for the next part of the body of the response; ``None``: that was all."""
        if self._has_no_body:
            return None
        await self._wait("read", lambda: self._part is not None or self._is_over)
        if self._part is None:
            if (error := self._end()) is not None:
                raise error
            return None
        part, self._part = self._part, None
        self.call.notify()
        return part

    async def wait_for_end_without_body(self) -> None:
        """Wait until the application has ended a response that has no body for the client."""
        while self.call.start is not None and self._has_no_body and not self._is_over:
            await self.call.wait_for_change()

    def disconnect(self) -> None:
        """Go away, unless the response is complete."""
        if not self.call.complete:
            self.call.disconnect()

    @property
    def _is_over(self) -> bool:
        """Whether no more comes."""
        return self.call.complete or self.call.returned or self.call.disconnected

    def _end(self) -> BaseException | None:
        """Return what is wrong with the end of the response, if anything is."""
        error = self.call.take_error()
        if error is None and self.call.disconnected:
            error = self._library.ReadError("the response was closed during a read")
        elif error is None and not self.call.complete:
            error = self._library.RemoteProtocolError(
                "the application returned before the end of the response"
            )
        return error

    async def _wait(self, kind: str, condition: Callable[[], bool]) -> None:
        """Wait for a condition.

        :param kind: which timeout of the client applies: ``read`` or ``write``.
        """
        timeout = self._timeouts.get(kind)
        with anyio.move_on_after(timeout):
            while not condition():
                await self.call.wait_for_change()
        if not condition():
            error = {"read": self._library.ReadTimeout, "write": self._library.WriteTimeout}[kind]
            done = {"read": "sent", "write": "received"}[kind]
            raise error(f"the application has {done} nothing for {timeout} seconds")


class _Stream:
    """The body of a response.

    This is no async generator: on trio one would have to be closed by whoever leaves it early.
    """

    def __init__(self, exchange: _Exchange, leave: Callable[[_Exchange], Any]) -> None:
        self._exchange = exchange
        self._leave = leave

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if (part := await self._exchange.read()) is None:
            raise StopAsyncIteration
        return part

    async def aclose(self) -> None:
        await self._leave(self._exchange)


@cache
def _stream_class(library: ModuleType) -> type[Any]:
    """Return the class that the client of a library accepts as the body of a response."""
    return type("ResponseStream", (_Stream, library.AsyncByteStream), {})


def _library_of(request: Any) -> ModuleType:
    """Return the package of a request, be it httpx, httpx2 or one that has the same names."""
    *_, base, _object = type(request).__mro__
    return sys.modules[base.__module__.partition(".")[0]]
