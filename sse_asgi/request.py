"""A read-only view of the request that opened a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .types import Scope

__all__ = ["Address", "MultiMapping", "SSERequest"]

#: Ids are positions, names or digests, so a longer Last-Event-ID is not one of ours. It comes from
#: the network, and may end up in a log line or a query.
MAX_LAST_EVENT_ID_BYTES = 4096


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
        """Return all values of ``name`` in the order in which they came, or ``[]``."""
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

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._draining: Callable[[], bool] = bool  # returns False until there is a stream

    if not TYPE_CHECKING:  # a type checker would take every attribute for one that is there

        def __getattr__(self, name: str) -> NoReturn:
            hint = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
            message = f"{type(self).__name__!r} object has no attribute {name!r}{hint}"
            raise AttributeError(message, name=name, obj=self)

    def follow(self, draining: Callable[[], bool]) -> None:
        """Let ``draining`` answer ``shutting_down``. The application calls this, not a factory."""
        self._draining = draining

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
        parameter ``last_event_id``, for clients that can't set a header. ``None``: there is no id,
        or it is longer than 4 KiB. It comes from the client: do not trust it.
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
        return self._draining()


def _decoded_id(value: bytes) -> str | None:
    if len(value) > MAX_LAST_EVENT_ID_BYTES:
        return None
    try:
        return value.decode()  # browsers send UTF-8, as the standard says
    except UnicodeDecodeError:
        return value.decode("latin-1")  # the fetch of npm sends Latin-1
