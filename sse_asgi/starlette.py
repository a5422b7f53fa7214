"""Server-Sent Events as a Starlette response: a drop-in for sse-starlette's.

The names, the parameters, their order and their defaults are those of sse-starlette 3. What a
program written for it yields is sent as the same bytes. The stream itself is that of
:func:`~sse_asgi.sse_app`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

try:
    from starlette.exceptions import HTTPException
    from starlette.responses import Response
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        f"{__name__} needs Starlette: pip install starlette", name=_error.name
    ) from _error

from .answers import respond, send_response
from .compat import (
    JSONServerSentEvent,
    SendTimeoutError,
    ServerSentEvent,
    encode,
    ensure_bytes,
)
from .errors import HTTPError, unavailable
from .observer import name_with_module
from .opening import opened
from .options import StreamOptions, check_function, merge_headers
from .reasons import CloseReason
from .request import SSERequest
from .runtime import current
from .source import check_source, discard
from .supervisor import Stream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.background import BackgroundTask

    from .compression import Codec, Compression
    from .limits import Limit
    from .observer import Observer
    from .reasons import CloseReport
    from .shutdown import Shutdown
    from .types import EventLike, Exchange, Headers, Message, Receive, Scope, Send

__all__ = [
    "EventSourceResponse",
    "JSONServerSentEvent",
    "SendTimeoutError",
    "ServerSentEvent",
    "ensure_bytes",
]

ContentStream: TypeAlias = AsyncIterable[Any] | Iterable[Any]


class _HasSet(Protocol):
    def set(self) -> object: ...


class EventSourceResponse(Response):
    r"""A response that streams events, for Starlette and every framework built on it.

    The parameters up to ``cleanup_timeout`` are those of sse-starlette, with its defaults. The
    keyword-only parameters are those of :func:`~sse_asgi.sse_app`. Times are in seconds.

    :param content: an async iterable or an iterable of what :func:`~sse_asgi.sse_app` streams.
        Anything else that it yields is sent as data (see :class:`ServerSentEvent`), and so is every
        ``str``. ``bytes`` must be whole frames: see :func:`~sse_asgi.relay`. It is not
        touched before the response starts, and it is closed when the stream ends.
    :param status_code: the status; an ``EventSource`` accepts only 200.
    :param headers: header fields to add. A field replaces a default of the same name. Hop-by-hop
        fields are dropped.
    :param media_type: the media type of the response.
    :param background: called after the stream, unless it ended with an exception.
    :param ping: send a ping after this time without a write; 0: never. Default 15.
    :param sep: the line ending: ``"\r\n"`` (default), ``"\n"`` or ``"\r"``.
    :param ping_message_factory: a function that returns an event for each ping, or whole comment
        lines as ``bytes``, such as ``b":\n"``; by default a ping is an empty comment.
    :param data_sender_callable: a coroutine function that runs while the stream is open, for
        example to feed a memory channel. If it raises, the stream ends with that exception.
    :param send_timeout: how long one ``send`` to the server may take. After that the response
        raises :class:`SendTimeoutError`. ``None``: no limit.
    :param client_close_handler_callable: a coroutine function that is called with the
        ``http.disconnect`` message when the client has left and the content is closed.
    :param shutdown_event: an event that is set when the stream is told to end, by a shutdown or
        at its ``max_lifetime``.
    :param shutdown_grace_period: how long the content may go on after the stream was told to end.
    :param cleanup_timeout: how long each of these may take: closing the content, the last chunk,
        ``client_close_handler_callable``, ``on_close``; ``None``: no limit.
    :param retry: as for :func:`~sse_asgi.sse_app`, as are ``shutdown``, ``max_lifetime``,
        ``limit``, ``recheck_every``, ``defer_start``, ``on_error``, ``on_close`` and ``observer``.
    :param recheck: as for :func:`~sse_asgi.sse_app`; called with an :class:`~sse_asgi.SSERequest`.
    :param max_connections: how many streams of this endpoint may be open at once in an event
        loop; one more gets 503.
    :param methods: the HTTP methods that are answered; others get 405. With GET, HEAD is answered
        too. By default all methods are answered that the route allows.
    :param compression: as for :func:`~sse_asgi.sse_app`.
    :param lifespan: refused, since only an application has a lifespan.
    :raises TypeError: for an option of the wrong type, or content that is not an iterable of
        events.
    :raises ValueError: for an option that is out of range.
    :raises ImportError: for a ``compression`` that is not installed.
    """

    media_type: str = "text/event-stream"

    DEFAULT_PING_INTERVAL: float = 15
    DEFAULT_SEPARATOR: str = "\r\n"
    DEFAULT_CLEANUP_TIMEOUT: float = 30.0

    #: Whether the response may still send something.
    active: bool = True

    def __init__(
        self,
        content: ContentStream,
        status_code: int = 200,
        headers: Headers | None = None,
        media_type: str | None = "text/event-stream",
        background: BackgroundTask | None = None,
        ping: float | None = None,
        sep: str | None = None,
        ping_message_factory: Callable[[], EventLike] | None = None,
        data_sender_callable: Callable[[], Awaitable[object]] | None = None,
        send_timeout: float | None = None,
        client_close_handler_callable: Callable[[Message], Awaitable[object]] | None = None,
        shutdown_event: _HasSet | None = None,
        shutdown_grace_period: float = 0,
        cleanup_timeout: float | None = DEFAULT_CLEANUP_TIMEOUT,
        *,
        retry: int | None = None,
        shutdown: Shutdown | None = None,
        max_lifetime: float | None = None,
        recheck: Callable[[SSERequest], object] | None = None,
        recheck_every: float = 60.0,
        max_connections: int | None = None,
        limit: Limit | None = None,
        methods: Iterable[str] | None = None,
        defer_start: bool | float | None = None,
        compression: Compression | Iterable[str] | bool | None = None,
        on_error: Callable[[Exception], EventLike | Awaitable[EventLike | None] | None]
        | None = None,
        on_close: Callable[[CloseReport], object] | None = None,
        observer: Observer | None = None,
        lifespan: None = None,
    ) -> None:
        check_source(content)
        if lifespan is not None:
            raise TypeError("lifespan belongs to the application: Starlette(lifespan=...)")
        if shutdown_event is not None and not callable(getattr(shutdown_event, "set", None)):
            raise TypeError(f"shutdown_event must be an event or None, not {shutdown_event!r}")
        check_function("data_sender_callable", data_sender_callable)
        check_function("client_close_handler_callable", client_close_handler_callable)
        self.body_iterator = content
        self.status_code = status_code
        if media_type is not None:
            self.media_type = media_type
        self.background = background
        self.data_sender_callable = data_sender_callable
        self.client_close_handler_callable = client_close_handler_callable
        self.shutdown_event: _HasSet | None = shutdown_event
        self._options = StreamOptions(
            ping=self.DEFAULT_PING_INTERVAL if ping is None else ping,
            ping_message_factory=ping_message_factory,
            sep=self.DEFAULT_SEPARATOR if sep is None else sep,
            headers=merge_headers(self._default_headers(), headers),
            retry=retry,
            send_timeout=send_timeout,
            cleanup_timeout=cleanup_timeout,
            shutdown=shutdown,
            shutdown_grace_period=shutdown_grace_period,
            max_lifetime=max_lifetime,
            recheck=recheck,
            recheck_every=recheck_every,
            max_connections=max_connections,
            limit=limit,
            methods=StreamOptions.methods if methods is None else methods,
            defer_start=defer_start,
            compression=compression,
            on_error=on_error,
            on_close=on_close,
            observer=observer,
        )
        self._methods = set() if methods is None else set(self._options.methods)
        if "GET" in self._methods:
            self._methods.add("HEAD")
        self.raw_headers: list[tuple[bytes, bytes]] = list(self._options.response_headers)

    @property
    def ping_interval(self) -> float:
        """The time without a write after which a ping is sent, in seconds; 0: never.

        Like the properties that follow, it may be set until the response is sent.
        """
        return self._options.ping or 0

    @ping_interval.setter
    def ping_interval(self, value: float) -> None:
        if value is None:
            raise TypeError("ping_interval must be a number of seconds, not None")
        self._options = replace(self._options, ping=value)

    @property
    def sep(self) -> str:
        """The line ending."""
        return self._options.sep

    @sep.setter
    def sep(self, value: str) -> None:
        self._options = replace(self._options, sep=value)

    @property
    def send_timeout(self) -> float | None:
        """How long a client may stop reading, in seconds; ``None``: without a limit."""
        return self._options.send_timeout

    @send_timeout.setter
    def send_timeout(self, value: float | None) -> None:
        self._options = replace(self._options, send_timeout=value)

    @property
    def ping_message_factory(self) -> Callable[[], EventLike] | None:
        """The function that returns an event for each ping; ``None``: the default ping."""
        return self._options.ping_message_factory

    @ping_message_factory.setter
    def ping_message_factory(self, value: Callable[[], EventLike] | None) -> None:
        self._options = replace(self._options, ping_message_factory=value)

    @property
    def shutdown_grace_period(self) -> float:
        """How long the content may go on after the stream was told to end, in seconds."""
        return self._options.shutdown_grace_period

    @shutdown_grace_period.setter
    def shutdown_grace_period(self, value: float) -> None:
        self._options = replace(self._options, shutdown_grace_period=value)

    @property
    def cleanup_timeout(self) -> float | None:
        """How long closing the content may take, in seconds; ``None``: without a limit."""
        return self._options.cleanup_timeout

    @cleanup_timeout.setter
    def cleanup_timeout(self, value: float | None) -> None:
        self._options = replace(self._options, cleanup_timeout=value)

    def enable_compression(self, force: bool = False) -> None:
        """Compress the response, as the option ``compression=True`` does.

        :param force: has no effect: whether to compress is up to the client.
        """
        if self._options.compression is None:
            self._options = replace(self._options, compression=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the response. HEAD gets only its headers. A websocket is denied with it."""
        if scope["type"] == "websocket":
            receive, send = _as_http(receive, send)
        stream = None
        try:
            headers = merge_headers({}, self.raw_headers)  # the caller may have changed them
            self._check_method(scope)
            headers, codec = self._options.negotiate(scope, headers)
            if str(scope.get("method")).upper() == "HEAD":
                await discard(self.body_iterator, self._options.cleanup_timeout)
                exchange = scope, receive, send
                await send_response(exchange, self.status_code, headers, b"", self._options)
            else:
                async with self._places(scope):
                    stream = self._open((scope, receive, send), headers, codec)
                    await stream.run()
                if stream.reason is CloseReason.SEND_TIMEOUT:
                    raise SendTimeoutError(f"nothing was read for {self._options.send_timeout} s")
        except Exception as exc:
            if stream is None:
                await discard(self.body_iterator, self._options.cleanup_timeout)
            if not isinstance(exc, HTTPError) or (stream is not None and stream.started):
                raise
            await self._refuse(exc, (scope, receive, send))
        finally:
            self.active = False
        if self.background is not None:
            await self.background()

    def _open(
        self, exchange: Exchange, headers: list[tuple[bytes, bytes]], codec: Codec | None
    ) -> Stream:
        event = self.shutdown_event
        stream = Stream(
            opened(self.body_iterator),
            exchange,
            self._options,
            start=(self.status_code, headers),
            encode=encode,
            on_disconnect=self._client_has_left if self.client_close_handler_callable else None,
            on_drain=None if event is None else event.set,
            feed=self.data_sender_callable,
            codec=codec,
        )
        if self._options.recheck is not None:
            stream.recheck(SSERequest(exchange[0]))
        if self._options.observer is not None:
            # Without a framework there is no endpoint: then what is streamed has a name.
            endpoint = exchange[0].get("endpoint", self.body_iterator)
            stream.observe(self._options.observer, exchange[0], name_with_module(endpoint))
        return stream

    @asynccontextmanager
    async def _places(self, scope: Scope) -> AsyncGenerator[None, None]:
        """Hold the places that a stream takes.

        :raises HTTPError: 503 or 429, if all places are taken.
        """
        limit = self._options.limit
        key = None if limit is None else await limit.take(SSERequest(scope))
        try:
            with _place(scope, self._options.max_connections):
                yield
        finally:
            if limit is not None:
                limit.give_back(key)

    def _check_method(self, scope: Scope) -> None:
        if scope["type"] != "http" or not self._methods:
            return
        if scope["method"].upper() not in self._methods:
            raise HTTPError(405, headers={"allow": ", ".join(sorted(self._methods))})

    async def _client_has_left(self) -> None:
        assert self.client_close_handler_callable is not None
        await self.client_close_handler_callable({"type": "http.disconnect"})

    async def _refuse(self, error: HTTPError, exchange: Exchange) -> None:
        scope = exchange[0]
        is_error = error.status_code >= 400
        if is_error and scope["type"] == "http" and "app" in scope:  # whose handlers answer
            raise HTTPException(error.status_code, error.detail, error.headers) from None
        await respond(exchange, error, self._options)

    def _default_headers(self) -> dict[bytes, bytes]:
        content_type = self.media_type
        if content_type.startswith("text/") and "charset=" not in content_type:
            content_type += "; charset=utf-8"
        # A proxy that compresses a stream would buffer it.
        return {
            b"content-type": content_type.encode("latin-1"),
            b"cache-control": b"no-store, no-transform",
        }


class _OpenStreams(Counter[object]):
    """How many streams each endpoint has open in an event loop."""


@contextmanager
def _place(scope: Scope, most: int | None) -> Iterator[None]:
    """Hold one of the ``most`` places that the endpoint of the request has for streams.

    :raises HTTPError: 503, if all places are taken.
    """
    if most is None:
        yield
        return
    endpoint = id(scope["endpoint"]) if "endpoint" in scope else scope["path"]
    streams = current().own(_OpenStreams)
    if streams[endpoint] >= most:
        raise unavailable("too many streams")
    streams[endpoint] += 1
    try:
        yield
    finally:
        streams[endpoint] -= 1
        if not streams[endpoint]:
            del streams[endpoint]


def _as_http(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Return a ``receive`` and a ``send`` that answer a websocket with an HTTP response.

    This is the Websocket Denial Response extension of ASGI.
    """

    async def receive_http() -> Message:
        message = await receive()
        return {**message, "type": message["type"].replace("websocket.", "http.")}

    async def send_http(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    return receive_http, send_http
