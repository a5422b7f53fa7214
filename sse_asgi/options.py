"""The options of a stream, defined, documented and checked once for every entry point."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from .body import DEFAULT_MAX_BODY
from .encoder import check_separator, encode
from .event import milliseconds
from .limits import Limit
from .observer import Observer, check_observer
from .reasons import CloseReport
from .shutdown import Shutdown
from .types import EventLike, Headers

if TYPE_CHECKING:
    from .compression import Codec, Compression
    from .types import Scope

__all__ = ["StreamOptions", "Timing"]

Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]

_DEFAULT_HEADERS = {
    b"content-type": b"text/event-stream; charset=utf-8",
    # A cache must not answer for a live stream. A proxy that compresses it would buffer it.
    b"cache-control": b"no-cache, no-transform",
    b"x-accel-buffering": b"no",  # nginx buffers responses otherwise
}

# These belong to one connection, not to the response (RFC 9110, 7.6.1). HTTP/2 and HTTP/3 forbid
# them (RFC 9113, 8.2.2).
_HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2


# What to say instead of inf, or of 0 where that would be no time at all.
_WITHOUT = {
    "ping": ": 0 means no pings",
    "send_timeout": ": None means no limit",
    "cleanup_timeout": ": None means no limit",
    "max_lifetime": ": None means no limit",
    "defer_start": ": True means no limit",
}


class Timing:
    """The options that are times, in seconds. ``inf`` means never. All streams share one object."""

    __slots__ = (
        "cleanup_timeout", "defer_start", "grace", "looks", "max_lifetime", "ping", "send_timeout",
    )  # fmt: skip

    def __init__(
        self,
        *,
        ping: float,
        send_timeout: float,
        cleanup_timeout: float,
        grace: float,
        defer_start: float,
        max_lifetime: float,
    ) -> None:
        self.ping: float = ping
        self.send_timeout: float = send_timeout
        #: How often to look whether a client takes something while a send waits.
        self.looks: float = send_timeout / 4
        self.cleanup_timeout: float = cleanup_timeout
        self.grace: float = grace
        self.defer_start: float = defer_start
        self.max_lifetime: float = max_lifetime


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    r"""The options that every entry point takes, all keyword-only. Times are in seconds.

    :param ping: send a ping after this time without a write: never earlier, and up to 1/64 of it
        later, at most 0.1 s, since streams are pinged together; ``None`` or 0: never.
    :param ping_message_factory: a function that returns an event-like for each ping. ``bytes`` may
        also be whole comment lines without a blank line: ``lambda: b":\n"`` makes a ping that is no
        event for any client. By default a ping is the empty comment ``b":\n\n"``.
    :param sep: the line ending: ``"\n"``, ``"\r\n"`` or ``"\r"``.
    :param headers: header fields to add, as a mapping or as pairs. A field replaces a default of
        the same name. Hop-by-hop fields are dropped.
    :param retry: the reconnection time in milliseconds, sent when the stream opens. At a shutdown
        each client gets a random time between this and twice as much, so that the clients do not
        all reconnect at once. ``None``: send neither.
    :param send_timeout: how long a client may take nothing of what is sent to it. Where its
        progress can't be seen (not on Linux, or a server that is not known), this is how long one
        ``send`` to the server may take. ``None``: no limit.
    :param cleanup_timeout: how long each of these may take: closing the source, the last chunk,
        ``on_close``; ``None``: no limit.
    :param shutdown: the :class:`~sse_asgi.Shutdown` that tells streams to end; by default that of
        the event loop.
    :param shutdown_grace_period: how long a source may go on after its stream was told to end. Then
        the source is closed.
    :param max_lifetime: the age at which a stream is told to end, as at a shutdown. Some streams
        are told up to a tenth earlier, so that streams opened together do not end together.
        ``None``: no limit.
    :param recheck: a function or coroutine function that is called with the request now and then,
        while the stream is open. If it returns something false, the client may not listen any more:
        the stream is told to end, as at ``max_lifetime``. If it raises, or takes longer than
        ``recheck_every``, the stream ends as by an exception of the source. A function that is not
        async runs in a thread.
    :param recheck_every: how often ``recheck`` is called. Each time it is up to a tenth earlier.
    :param max_connections: how many streams may be open at once; one more gets 503. ``None``: no
        limit.
    :param limit: a :class:`~sse_asgi.Limit`: how many streams may be open at once for each user, or
        whatever its key says; one more gets 429.
    :param methods: the HTTP methods that open a stream. With GET, HEAD is answered too.
    :param max_body: how many bytes the body of a request may have. If it has more, reading it
        (:meth:`SSERequest.body <sse_asgi.SSERequest.body>`) raises HTTPError 413; a body that
        nobody reads is not counted. ``None``: no limit.
    :param defer_start: hold the response back until the first event, so that the source can still
        raise :class:`~sse_asgi.HTTPError`. ``True``: without a limit; a number: for at most so
        many seconds. By default the headers are sent as soon as the source waits.
    :param compression: compress streams for clients that accept that: ``True``, the name of a
        content coding (``"gzip"``, ``"zstd"``, ``"br"``), several names, the best first, or a
        :class:`~sse_asgi.compression.Compression`. It is off by default: what is compressed
        together with a secret can give the secret away (BREACH).
    :param on_error: a function or coroutine function, called with an exception that leaves the
        source. If it returns an event-like, this is sent before the response ends, and the
        exception goes no further. If it returns ``None``, the exception leaves the application.
    :param on_close: a function or coroutine function, called with a
        :class:`~sse_asgi.CloseReport` when the stream has ended.
    :param observer: an :class:`~sse_asgi.Observer`, for metrics and traces: it is told when a
        stream opens and ends, and given its figures.
    :param lifespan: a function that is called with the application and returns an async context
        manager. This is entered when the server starts and left when it stops. A mapping that it
        yields becomes the state of every request.
    :raises TypeError: for an option of the wrong type.
    :raises ValueError: for an option that is out of range.
    :raises ImportError: for a ``compression`` that is not installed.
    """

    ping: float | None = 15.0
    ping_message_factory: Callable[[], EventLike] | None = None
    sep: str = "\n"
    headers: Headers | None = None
    retry: int | None = None
    send_timeout: float | None = 30.0
    cleanup_timeout: float | None = 5.0
    shutdown: Shutdown | None = None
    shutdown_grace_period: float = 0.0
    max_lifetime: float | None = None
    recheck: Callable[[Any], object] | None = None
    recheck_every: float = 60.0
    max_connections: int | None = None
    limit: Limit | None = None
    methods: Iterable[str] = ("GET",)
    max_body: int | None = DEFAULT_MAX_BODY
    defer_start: bool | float | None = None
    compression: Compression | Iterable[str] | bool | None = None
    on_error: Callable[[Exception], EventLike | Awaitable[EventLike | None] | None] | None = None
    on_close: Callable[[CloseReport], object] | None = None
    observer: Observer | None = None
    lifespan: Lifespan | None = None

    response_headers: list[tuple[bytes, bytes]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        def normal(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        normal("ping", _seconds("ping", self.ping) or None)
        check_function("ping_message_factory", self.ping_message_factory)
        check_separator(self.sep)
        if self.retry is not None:
            milliseconds(self.retry)
        _seconds("send_timeout", self.send_timeout, above_zero=True)
        _seconds("cleanup_timeout", self.cleanup_timeout)
        if not isinstance(self.shutdown, Shutdown | None):
            raise TypeError(f"shutdown must be a Shutdown or None, not {self.shutdown!r}")
        if self.shutdown_grace_period is None:
            raise TypeError("shutdown_grace_period must be a number of seconds, not None")
        _seconds("shutdown_grace_period", self.shutdown_grace_period)
        _seconds("max_lifetime", self.max_lifetime, above_zero=True)
        check_function("recheck", self.recheck)
        if self.recheck_every is None:
            raise TypeError("recheck_every must be a number of seconds, not None")
        _seconds("recheck_every", self.recheck_every, above_zero=True)
        _number("max_connections", self.max_connections, least=1)
        if not isinstance(self.limit, Limit | None):
            raise TypeError(f"limit must be a Limit or None, not {self.limit!r:.80}")
        _number("max_body", self.max_body, least=0)
        normal("methods", _methods(self.methods))
        if not isinstance(self.defer_start, bool):
            if not isinstance(self.defer_start, (int, float, type(None))):
                raise TypeError(
                    "defer_start must be True, False, a number of seconds or None, not "
                    f"{self.defer_start!r}"
                )
            _seconds("defer_start", self.defer_start)
        normal("compression", _compression(self.compression))
        check_function("on_error", self.on_error)
        check_function("on_close", self.on_close)
        check_observer(self.observer)
        _check_lifespan(self.lifespan)
        normal("response_headers", merge_headers(_DEFAULT_HEADERS, self.headers))

    # Not fields: each would take a dataclass longer to make.

    def negotiate(
        self, scope: Scope, headers: list[tuple[bytes, bytes]]
    ) -> tuple[list[tuple[bytes, bytes]], Codec | None]:
        """Return the header fields of a stream, and what compresses it, if anything does.

        :raises HTTPError: 406: see :meth:`Compression.negotiate
            <sse_asgi.compression.Compression.negotiate>`.
        """
        compression = self.compression
        if compression is None:
            return headers, None
        return cast("Compression", compression).negotiate(scope, headers)

    @cached_property
    def of_answers(self) -> StreamOptions:
        """The options of a response that is no stream, and is bounded like one."""
        return StreamOptions(
            ping=None,
            send_timeout=self.send_timeout,
            cleanup_timeout=self.cleanup_timeout,
            shutdown=self.shutdown,
            defer_start=True,
        )

    @cached_property
    def preamble(self) -> bytes:
        """What comes first in the body of a stream."""
        return b"" if self.retry is None else encode({"retry": self.retry}, self.sep)

    @cached_property
    def timing(self) -> Timing:
        """The times of a stream."""

        def or_never(seconds: float | None) -> float:
            return math.inf if seconds is None else seconds

        return Timing(
            ping=or_never(self.ping),
            send_timeout=or_never(self.send_timeout),
            cleanup_timeout=or_never(self.cleanup_timeout),
            grace=self.shutdown_grace_period,
            defer_start=math.inf if self.defer_start is True else self.defer_start or 0,
            max_lifetime=or_never(self.max_lifetime),
        )


def merge_headers(
    defaults: Mapping[bytes, bytes], given: Headers | None
) -> list[tuple[bytes, bytes]]:
    """Return the header fields ``given``, and the defaults that are not among them.

    :raises TypeError: for header fields of the wrong type.
    :raises ValueError: for a malformed header field, or a ``content-length``.
    """
    pairs: Iterable[Any] = ()
    if isinstance(given, Mapping):
        pairs = given.items()
    elif given is not None:
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
            raise TypeError(f"headers must be a mapping or pairs, not {given!r}")
        pairs = given
    fields: list[tuple[bytes, bytes]] = []
    for pair in pairs:
        try:
            name, value = pair
        except (TypeError, ValueError):
            raise TypeError(f"headers must be pairs of name and value, not {pair!r}") from None
        field_name = _latin1("a name", name).lower()
        field_value = _latin1(f"the value of {name!r}", value).strip(b" \t")
        if not _TOKEN.fullmatch(field_name):
            raise ValueError(f"headers: {name!r} is no field name (RFC 9110, 5.1)")
        if re.search(rb"[\r\n\0]", field_value):
            raise ValueError(f"headers: {name!r} must not contain CR, LF or NUL: {value!r}")
        if field_name == b"content-length":
            raise ValueError(
                f"headers: the length of a stream is not known: leave out {name!r}: {value!r}"
            )
        if field_name not in _HOP_BY_HOP:
            fields.append((field_name, field_value))
    names = {name for name, _ in fields}
    return [pair for pair in defaults.items() if pair[0] not in names] + fields


def _latin1(what: str, value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise TypeError(f"headers: {what} must be a str or bytes, not {value!r}")
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"headers: {what} is not Latin-1 (RFC 9110, 5.5): {value!r}") from None


def _methods(methods: object) -> tuple[str, ...]:
    if isinstance(methods, (str, bytes)) or not isinstance(methods, Iterable):
        raise TypeError(f"methods must be a sequence of str, not {methods!r}")
    names: list[str] = []
    for name in methods:
        if not isinstance(name, str):
            raise TypeError(f"methods must be a sequence of str, not {methods!r}")
        if not name.isascii() or not _TOKEN.fullmatch(name.encode()):
            raise ValueError(f"methods: {name!r} is no HTTP method, in {methods!r}")
        names.append(name.upper())
    if not names:
        raise ValueError(f"methods must not be empty: {methods!r}")
    return tuple(dict.fromkeys(names))


def _seconds(name: str, value: object, *, above_zero: bool = False) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds or None, not {value!r}")
    if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
        least = "> 0" if above_zero else ">= 0"
        hint = _WITHOUT.get(name, "")
        raise ValueError(f"{name} must be a finite number of seconds {least}, not {value!r}{hint}")
    return float(value)


def _number(name: str, value: object, *, least: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int or None, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


def _compression(value: object) -> Compression | None:
    if value is None or value is False:
        return None
    from .compression import Compression  # few streams are compressed

    return Compression.of(value)


def check_function(name: str, value: object) -> None:
    """Check that the option ``name`` is ``None`` or can be called.

    :raises TypeError: if it is neither.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable or None, not {value!r:.80}")


def _check_lifespan(value: object) -> None:
    """Refuse a context manager in place of the function that makes one. It may be callable, too.

    :raises TypeError: if it is one, or can't be called.
    """
    if hasattr(type(value), "__aenter__"):
        raise TypeError(
            "lifespan must be a function that returns a context manager, such as hub.lifespan, "
            f"which is not called here; not {value!r:.80}"
        )
    check_function("lifespan", value)
