"""A read-only view of the request that opened a stream."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from .body import DEFAULT_MAX_BODY, EMPTY, LOST, Body
from .errors import HTTPError

if TYPE_CHECKING:
    import datetime
    from collections.abc import AsyncIterator, Callable, Iterable
    from typing import Protocol

    from .types import Message, Scope

    class Stream(Protocol):
        """The stream that a request has opened."""

        def draining(self) -> bool:
            """Return whether it was told to end."""
            ...

        def expire_at(self, when: float) -> None:
            """Tell it to end at a time: seconds since 1970. Any thread may call this."""
            ...


__all__ = ["UNREAD", "Address", "MultiMapping", "ReceivedRequest", "SSERequest", "UnreadBody"]


class Address(NamedTuple):
    """The host and port of a peer."""

    host: str
    port: int


class MultiMapping(Mapping[str, str]):
    """Names and values in the order in which they came. A name may come more than once.

    As a mapping this has the last value of a name. :meth:`getlist` returns all values.
    """

    def __init__(self, items: Iterable[tuple[str, str]], fold: Callable[[str], str] = str) -> None:
        self._fold = fold
        self._lists: dict[str, list[str]] = {}
        for name, value in items:
            self._lists.setdefault(fold(name), []).append(value)

    def getlist(self, name: str) -> list[str]:
        """Return all values of ``name`` in the order in which they came, or ``[]``.

        :param name: the name of a field or parameter.
        """
        return list(self._lists.get(self._fold(name), ()))

    def __getitem__(self, name: str) -> str:
        return self._lists[self._fold(name)][-1]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._fold(name) in self._lists

    def __iter__(self) -> Iterator[str]:
        return iter(self._lists)

    def __len__(self) -> int:
        return len(self._lists)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._lists!r})"


#: What Starlette's Request has and this one has not, and what to use.
_INSTEAD = {
    "app": "use request.scope['app']",
    "auth": "use request.scope['auth']",
    "base_url": "use request.scope, which has scheme, server and root_path",
    "form": "parse await request.body()",
    "is_disconnected": "the source is closed when the client leaves, so nobody has to ask",
    "receive": "the library listens to the client itself",
    "session": "use request.scope['session']",
    "url": "use request.path, .query_params and .headers['host']",
    "url_for": "use request.scope['router'].url_path_for(name)",
    "user": "use request.scope['user']",
}


class SSERequest:
    """The request that opened a stream: the argument of the factory."""

    # The dictionary is made when a cached property is asked for.
    __slots__ = ("__dict__", "__weakref__", "_expires", "_scope", "_stream")

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._stream: Stream | None = None  # until there is one
        self._expires: float | None = None

    if not TYPE_CHECKING:  # a type checker would take every attribute for one that is there

        def __getattr__(self, name: str) -> NoReturn:
            hint = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
            message = f"{type(self).__name__!r} object has no attribute {name!r}{hint}"
            raise AttributeError(message, name=name, obj=self)

    def follow(self, stream: Stream) -> None:
        """Note which stream this is about. The application calls this, not a factory."""
        self._stream = stream
        if self._expires is not None:
            stream.expire_at(self._expires)

    @property
    def scope(self) -> Scope:
        """The ASGI connection scope."""
        return self._scope

    @property
    def method(self) -> str:
        """The HTTP method, in upper case."""
        return str(self._scope["method"])

    @property
    def path(self) -> str:
        """The path, percent-decoded, including the ``root_path`` of a mount."""
        return str(self._scope["path"])

    @property
    def path_params(self) -> Mapping[str, Any]:
        """The path parameters that a router has found; empty without a router."""
        params: Mapping[str, Any] = self._scope.get("path_params") or {}
        return params

    @cached_property
    def headers(self) -> MultiMapping:
        """The header fields: names in any case, values decoded as Latin-1 (RFC 9110, 5.5)."""
        fields = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in self._scope["headers"]]
        return MultiMapping(fields, fold=str.lower)

    @cached_property
    def query_params(self) -> MultiMapping:
        """The decoded parameters of the query string, including those without a value."""
        from urllib.parse import parse_qsl  # slow to import, and rarely needed

        query: bytes = self._scope.get("query_string") or b""
        return MultiMapping(parse_qsl(query.decode("latin-1"), keep_blank_values=True))

    @cached_property
    def cookies(self) -> Mapping[str, str]:
        """The cookies (RFC 6265, 5.4), without quotes around a value."""
        cookies: dict[str, str] = {}
        for line in self.headers.getlist("cookie"):
            for pair in line.split(";"):
                name, equals, value = pair.partition("=")
                if equals:
                    cookies.setdefault(name.strip(), value.strip().strip('"'))
        return cookies

    @property
    def client(self) -> Address | None:
        """The host and port of the client, or ``None`` if the server does not know them."""
        client = self._scope.get("client")
        return Address(*client) if client else None

    @property
    def state(self) -> dict[str, Any]:
        """The state that the lifespan of the application shares with its requests."""
        state: dict[str, Any] = self._scope.setdefault("state", {})
        return state

    @cached_property
    def last_event_id(self) -> str | None:
        """The id of the last event that the client has seen (WHATWG HTML 9.2.4).

        It is read from the ``Last-Event-ID`` header. If that is missing, it is read from the query
        parameter ``last_event_id``, for clients that can't set a header. ``None``: there is no id.
        It comes from the client: do not trust it. It is as long as the server lets through.
        """
        for name, value in self._scope["headers"]:
            if name.lower() == b"last-event-id" and value:
                return _decoded_id(value)
        value = self.query_params.get("last_event_id")
        return _decoded_id(value.encode()) if value else None

    @property
    def shutting_down(self) -> bool:
        """Whether the stream was told to end, by a shutdown or at its ``max_lifetime``.

        A source that checks this can end by itself within ``shutdown_grace_period``.
        """
        return self._stream is not None and self._stream.draining()

    def expire_at(self, when: datetime.datetime | float) -> None:
        """Tell the stream to end at a time, as at its ``max_lifetime``.

        Use it if the client has a right to listen until then, and no longer.

        The factory may call this, and the source, in any thread. The last call counts, so a right
        may be renewed. A time that is over ends the stream at once.

        :param when: a :class:`~datetime.datetime` with a time zone, or seconds since 1970: the
            ``exp`` of a JSON Web Token (RFC 7519, 4.1.4).
        :raises TypeError: for something else.
        :raises ValueError: for a :class:`~datetime.datetime` without a time zone, or no time at all
            (NaN).
        """
        self._expires = seconds = _timestamp(when)
        if self._stream is not None:
            self._stream.expire_at(seconds)

    async def body(self) -> bytes:
        """Wait for the whole body, and return it. It may be called again.

        The body may be read in the factory, before the first event, and while the stream runs. A
        body of 64 KiB or more has to be asked for before the first event. Otherwise it is dropped,
        because the stream has to go on listening to the client.

        The response does not start while the body is read, so an :class:`HTTPError` afterwards is
        the status, if the source has not waited for something else.

        :raises HTTPError: 413 (Content Too Large), if the body has more than ``max_body`` bytes.
            If the client has announced this with ``Content-Length``, nothing is read.
        :raises ClientDisconnectedError: the client has left before the body was complete.
        :raises RuntimeError: the body was dropped, or read with :meth:`stream`; or this request was
            not made by :func:`~sse_asgi.sse_app`.
        """
        return await self._reading().read()

    async def json(self) -> Any:
        """Wait for the whole body, and return the value of its JSON (RFC 8259), in UTF-8.

        :raises HTTPError: 400 (Bad Request), if the body is empty, or is not JSON; 413, as for
            :meth:`body`, which raises the other errors too.
        """
        body = await self.body()
        if not body:
            raise HTTPError(400, "the body of the request must be JSON, and is empty")
        import json  # few ask

        try:
            return json.loads(body.decode())
        except (ValueError, RecursionError) as exc:  # UnicodeDecodeError is a ValueError
            raise HTTPError(400, f"the body of the request is not JSON: {exc}") from exc

    def stream(self) -> AsyncIterator[bytes]:
        """Return the chunks of the body as they come: ``async for chunk in request.stream()``.

        No chunk is empty. Chunks are read only as fast as you take them. Until you have taken all,
        nobody notices that the client leaves. The body can be read once in this way, and
        :meth:`body` can't be called then. After :meth:`body`, this gives the body as one chunk.

        :raises HTTPError: 413, as for :meth:`body`, which raises the other errors too.
        """
        return self._reading().stream()

    def _reading(self) -> Body:
        raise RuntimeError("there is no body to read: this request was not made by sse_app")


class ReceivedRequest(SSERequest):
    """A request as its application sees it, which gives it what it receives.

    A body that nobody reads, and that is empty, takes no memory.

    :param max_body: see :class:`~sse_asgi.StreamOptions`.
    """

    __slots__ = ("_body", "_max_body")

    def __init__(self, scope: Scope, max_body: int | None = DEFAULT_MAX_BODY) -> None:
        super().__init__(scope)
        self._max_body = max_body
        self._body: Body | None = None

    @property
    def wants_more(self) -> bool:
        """Whether ``receive()`` should be called. See :attr:`Body.wants_more`."""
        return self._body is None or self._body.wants_more

    @property
    def is_read(self) -> bool:
        """Whether the response must not start, since the body is read. See :attr:`Body.is_read`."""
        return self._body is not None and self._body.is_read

    def when_read(self, function: Callable[[], object] | None) -> None:
        """Have a function called when :attr:`is_read` has become false.

        Set it only while that is true.
        """
        if self._body is not None:
            self._body.on_read = function

    def when_wanted(self, function: Callable[[], object] | None) -> None:
        """Have a function called when a reader has made :attr:`wants_more` true.

        Set it only while that is false.
        """
        if self._body is not None:
            self._body.on_wanted = function

    def deliver(self, message: Message) -> None:
        """Take an ``http.request`` message, in order. Does not wait."""
        if self._body is None:
            if not message.get("body") and not message.get("more_body"):
                self._body = EMPTY
                return
            self._body = Body(self._max_body, self._content_length)
        self._body.deliver(message)

    def lost(self) -> None:
        """Note that the client has left."""
        if self._body is None:
            self._body = LOST
        self._body.lost()

    def drop(self) -> None:
        """Drop what is held if that is too much to keep, and nobody has begun to read."""
        if self._body is not None:
            self._body.drop()

    @property
    def _content_length(self) -> int | None:
        """The ``Content-Length`` (RFC 9110, 8.6), or ``None`` if there is none that is valid."""
        value = self.headers.get("content-length", "")
        # int() refuses thousands of digits.
        return int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None

    def _reading(self) -> Body:
        if self._body is None:
            self._body = Body(self._max_body, self._content_length)
        return self._body


class UnreadBody:
    """Takes the place of a request whose body nobody can read: it keeps nothing."""

    wants_more: bool = True
    is_read: bool = False

    def when_read(self, function: Callable[[], object] | None) -> None:
        """Do nothing."""

    def when_wanted(self, function: Callable[[], object] | None) -> None:
        """Do nothing."""

    def deliver(self, message: Message) -> None:
        """Drop a part of the body."""

    def lost(self) -> None:
        """Do nothing."""

    def drop(self) -> None:
        """Do nothing."""


#: All such requests share it, since it has no state.
UNREAD = UnreadBody()


def _timestamp(when: object) -> float:
    """Return a time in seconds since 1970."""
    if isinstance(when, (int, float)) and not isinstance(when, bool):
        if math.isnan(when):
            raise ValueError("expire_at() needs a time, not nan")
        return float(when)
    from datetime import datetime  # few ask

    if not isinstance(when, datetime):
        raise TypeError(
            f"expire_at() needs a datetime, or a number of seconds since 1970, not {when!r:.80}"
        )
    if when.tzinfo is None:
        raise ValueError(f"expire_at() needs a datetime with a time zone, not {when!r}")
    return when.timestamp()


def _decoded_id(value: bytes) -> str:
    try:
        return value.decode()  # browsers send UTF-8, as the standard says
    except UnicodeDecodeError:
        return value.decode("latin-1")  # the fetch of npm sends Latin-1
