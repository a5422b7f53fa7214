"""The ASGI application around a stream: methods, status codes, lifespan."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, cast, overload

import anyio

from .answers import respond, send_response
from .errors import ClientDisconnectedError, HTTPError, as_answer, unavailable
from .factory import function_of, name_of, takes_request
from .observer import name_with_module
from .opening import Opening, opened
from .options import StreamOptions
from .reasons import CloseReason
from .request import UNREAD, ReceivedRequest
from .source import discard
from .supervisor import Stream

if TYPE_CHECKING:
    from collections.abc import Hashable

    from .source import OpenSource
    from .types import Exchange, Factory, Receive, Scope, Send

__all__ = ["SSEApp", "sse_app"]

P = ParamSpec("P")

#: What :func:`functools.wraps` takes over from a function, in every Python.
_NAMES = ("__module__", "__name__", "__qualname__", "__doc__")


class SSEApp:
    """An ASGI application that answers each request with an event stream: see :func:`sse_app`."""

    def __init__(self, factory: Factory, options: StreamOptions) -> None:
        if isinstance(factory, SSEApp):
            raise TypeError(f"{factory!r} is an application already, and not a factory")
        self._takes_request = takes_request(factory)
        self.factory = factory
        self.options = options
        # For url_for() and the names of routes, for tools that ask where an endpoint was defined,
        # and for help(). Not its attributes, which functools.update_wrapper() would copy too.
        functools.update_wrapper(self, function_of(factory), _NAMES, updated=())
        self.__name__: str = name_of(factory)
        self.__wrapped__: Factory = factory
        # It is called as an ASGI application: Litestar looks at this. Without it, inspect would
        # follow __wrapped__.
        self.__signature__: inspect.Signature = inspect.signature(self.__call__)
        self._methods = set(options.methods)
        if "GET" in self._methods:
            self._methods.add("HEAD")
        # Several event loops, each in a thread of its own, may serve one application.
        self._count_lock = threading.Lock()
        self._connections = 0

    def __repr__(self) -> str:
        return f"sse_app({getattr(self.factory, '__qualname__', self.factory)})"

    @property
    def connections(self) -> int:
        """The number of open streams."""
        return self._connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve an ``http`` or ``lifespan`` scope, and refuse a ``websocket``."""
        # A coroutine for each of these steps would take memory for as long as a stream is open, as
        # would a variable with the three of them.
        if scope["type"] == "http":
            method = scope["method"].upper()
            if method == "HEAD" and method in self._methods:
                await self._send_headers((scope, receive, send))
                return
            answer = self._refusal(method)
            if answer is None:
                stream: Stream | None = None
                key: Hashable = None
                try:
                    stream, key = await self._open((scope, receive, send))
                    await stream.run()
                except Exception as exc:
                    answer = _answer(exc, scope, stream)
                    if answer is None and not _is_quiet(exc, stream):
                        raise
                finally:
                    self._leave(key)
            if answer is not None:
                await respond((scope, receive, send), answer, self.options)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "websocket":
            with anyio.move_on_after(self.options.send_timeout):
                await send({"type": "websocket.close", "code": 1000})
        else:
            raise ValueError(f"unknown ASGI scope type {scope['type']!r}")

    def _refusal(self, method: str) -> HTTPError | None:
        """Return the answer to a request that opens no stream.

        If it opens one (``None``), this counts the stream as open.
        """
        if method not in self._methods:
            status = 204 if method == "OPTIONS" else 405
            return HTTPError(status, headers={"allow": self._allow()})
        if not self._enter():
            return unavailable("too many streams")
        return None

    async def _open(self, exchange: Exchange) -> tuple[Stream, Hashable]:
        """Call the factory and make a stream from its source.

        :returns: the stream, and the key for which it takes a place of the ``limit``.
        """
        request = ReceivedRequest(exchange[0], self.options.max_body)
        limit = self.options.limit
        if limit is None:
            return await self._stream(exchange, request), None
        key = await limit.take(request)
        try:
            return await self._stream(exchange, request), key
        except BaseException:
            limit.give_back(key)
            raise

    async def _send_headers(self, exchange: Exchange) -> None:
        """Answer a HEAD."""
        headers = self.options.response_headers
        try:
            headers, _ = self.options.negotiate(exchange[0], headers)
        except HTTPError as exc:
            await respond(exchange, exc, self.options)
        else:
            await send_response(exchange, 200, headers, b"", self.options)

    async def _stream(self, exchange: Exchange, request: ReceivedRequest) -> Stream:
        headers, codec = self.options.negotiate(exchange[0], self.options.response_headers)
        source = self.factory(request) if self._takes_request else self.factory()
        if inspect.isawaitable(source):
            to_read: OpenSource | Opening = Opening(source)
        else:
            try:
                to_read = opened(source)
            except HTTPError:
                await discard(source, self.options.cleanup_timeout)
                raise
        reader = request if self._takes_request else UNREAD
        stream = Stream(
            to_read, exchange, self.options, start=(200, headers), reader=reader, codec=codec
        )
        request.follow(stream)
        if self.options.recheck is not None:
            stream.recheck(request)
        if self.options.observer is not None:
            stream.observe(self.options.observer, exchange[0], name_with_module(self.factory))
        return stream

    def _allow(self) -> str:
        return ", ".join(sorted(self._methods | {"OPTIONS"}))

    def _enter(self) -> bool:
        most = self.options.max_connections
        with self._count_lock:
            if most is not None and self._connections >= most:
                return False
            self._connections += 1
            return True

    def _leave(self, key: Hashable) -> None:
        with self._count_lock:
            self._connections -= 1
        if self.options.limit is not None:
            self.options.limit.give_back(key)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        phase = "startup"
        await receive()
        try:
            async with (self.options.lifespan or _no_lifespan)(self) as state:
                if state is not None:
                    if "state" not in scope:
                        raise RuntimeError("the server has no lifespan state to put a mapping in")
                    scope["state"].update(state)
                await send({"type": "lifespan.startup.complete"})
                phase = "shutdown"
                await receive()
        except Exception as exc:
            await send({"type": f"lifespan.{phase}.failed", "message": repr(exc)})
            raise
        await send({"type": "lifespan.shutdown.complete"})


def _answer(exc: Exception, scope: Scope, stream: Stream | None) -> HTTPError | None:
    """Return what answers a request whose source has raised; ``None``: nothing can."""
    answer = None
    if isinstance(exc, HTTPError):
        answer = exc
    elif "app" not in scope:  # else a framework is around, and answers its own exceptions
        answer = as_answer(exc)
    if answer is None or (stream is not None and stream.started):
        return None
    return answer.with_traceback(None)  # which has this frame: no cycle for the collector


def _is_quiet(exc: Exception, stream: Stream | None) -> bool:
    """Return whether an exception only says that the client has left, and that is known."""
    return (
        isinstance(exc, ClientDisconnectedError)
        and stream is not None
        and stream.reason is CloseReason.CLIENT_DISCONNECTED
    )


def _no_lifespan(app: SSEApp) -> AbstractAsyncContextManager[None]:
    return nullcontext()


class _SSEAppFunction(Protocol[P]):
    """The type of :func:`sse_app`. Its keyword parameters are those of StreamOptions."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a factory is never an option
        self, factory: Factory, *args: P.args, **options: P.kwargs
    ) -> SSEApp: ...
    @overload
    def __call__(self, *args: P.args, **options: P.kwargs) -> Callable[[Factory], SSEApp]: ...


def _with_options(
    options: Callable[P, StreamOptions],
) -> Callable[[Callable[..., Any]], _SSEAppFunction[P]]:
    """Give a function the keyword parameters of ``options``, for type checkers and readers."""

    def decorate(function: Callable[..., Any]) -> _SSEAppFunction[P]:
        own = inspect.signature(function)
        parameters = [
            *(p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD),
            *inspect.signature(options).parameters.values(),
        ]
        function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return cast("_SSEAppFunction[P]", function)

    return decorate


@_with_options(StreamOptions)
def sse_app(factory: Any = ..., **options: Any) -> Any:
    """Make an ASGI application that answers each request with an event stream.

    ::

        async def clock(request):
            while True:
                yield {"event": "tick", "data": time.time()}
                await anyio.sleep(1)

        app = sse_app(clock)

    It is also a decorator: ``@sse_app`` and ``@sse_app(ping=5)``.

    :param factory: an async or sync generator function, or a function or coroutine function that
        returns an async iterable or an iterable of event-likes. It is called for each request
        before the response starts, with the :class:`~sse_asgi.SSERequest`, or with nothing if it
        takes no argument. It may raise :class:`~sse_asgi.HTTPError`.
    :param options: see :class:`~sse_asgi.StreamOptions`.
    :returns: the application, an :class:`~sse_asgi.SSEApp`. It has the name, the module, the
        documentation and ``__wrapped__`` of the factory.
    :raises TypeError: for a factory that can't be called like this, or has dependencies of FastAPI
        (``Depends``), which nobody would resolve; for an option of the wrong type.
    :raises ValueError: for an option that is out of range.
    """
    known = StreamOptions.__dataclass_fields__
    names = [name for name in known if known[name].init]
    if unknown := [name for name in options if name not in names]:
        raise TypeError(f"sse_app() has no option {' and no '.join(_nearest(unknown, names))}")
    checked = StreamOptions(**options)
    if factory is ...:
        return lambda factory: SSEApp(factory, checked)
    return SSEApp(factory, checked)


def _nearest(unknown: list[str], names: list[str]) -> Iterator[str]:
    """Return each unknown name, with the known one that is most like it."""
    from difflib import get_close_matches  # slow to import, and few need it

    for name in unknown:
        near = get_close_matches(name, names, 1)
        yield f"{name!r} (did you mean {near[0]!r}?)" if near else repr(name)
