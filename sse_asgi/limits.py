"""How many streams each user, or each address, may have open at once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .errors import unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from .request import SSERequest

__all__ = ["Limit"]


class Places(Protocol):
    """What counts for all nodes: see :class:`sse_asgi.hub.PlaceLog`."""

    async def take(self, name: str, most: int) -> str | None:
        """Take a place, and return it; ``None``: there was none."""
        ...

    def give_back(self, name: str, place: str) -> None:
        """Give a place back."""
        ...


class SharesPlaces(Protocol):
    """A hub, as far as a limit knows it."""

    def _sse_asgi_places(self) -> Places | None: ...


class _Shared(NamedTuple):
    """A place that counts for all nodes."""

    key: Hashable
    name: str
    place: str


class Limit:
    """Limit how many streams may be open at once for each key.

    ::

        app = sse_app(news, limit=Limit(5, key=lambda request: request.cookies.get("user")))

    One more is answered with 429 (Too Many Requests, RFC 6585) and a Retry-After. Applications and
    responses that are given the same Limit count together, in any event loops and threads.

    Without a hub, the streams of this process count. With a hub, those of all its nodes count. If a
    node dies, its streams count for 15 seconds more. If the log of the hub does not answer within a
    second, only the streams of this process count, and the stream is open if they allow it.

    :param most: how many streams.
    :param key: a function that is called with the :class:`~sse_asgi.SSERequest` before its stream
        opens, and returns what counts: a user, an address. For ``None`` there is no limit. It may
        raise :class:`~sse_asgi.HTTPError`. With a hub that has nodes, it must be a ``str`` or an
        ``int``.
    :param hub: the :class:`~sse_asgi.hub.Hub` whose nodes count together. It must be open, in the
        event loop of the streams.
    :param name: with a hub, limits of the same name count together.
    :raises TypeError: for a number that is no ``int``, a key that can't be called, something else
        than a hub, or a hub whose log can't count for all nodes.
    :raises ValueError: for a number below 1.
    """

    def __init__(
        self,
        most: int,
        *,
        key: Callable[[SSERequest], Hashable],
        hub: SharesPlaces | None = None,
        name: str = "streams",
    ) -> None:
        if not isinstance(most, int) or isinstance(most, bool):
            raise TypeError(f"a Limit must be an int, not {most!r:.80}")
        if most < 1:
            raise ValueError(f"a Limit must be at least 1, not {most}")
        if not callable(key):
            raise TypeError(f"key must be a function of the request, not {key!r:.80}")
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, not {name!r:.80}")
        places = getattr(hub, "_sse_asgi_places", None)
        if hub is not None and places is None:
            raise TypeError(f"hub must be a Hub or None, not {hub!r:.80}")
        self._places: Places | None = None if places is None else places()
        self._name = name
        self.most: int = most
        self.key: Callable[[SSERequest], Hashable] = key
        self._lock = threading.Lock()
        self._open: dict[Hashable, int] = {}

    def __repr__(self) -> str:
        return f"<Limit {self.most} keys={len(self._open)}>"

    async def take(self, request: SSERequest) -> Hashable:
        """Take a place for a stream, and return it. The application calls this.

        :raises HTTPError: 429, if there is none.
        :raises TypeError: the key can't be looked up, since it has no hash; with a hub, it is
            neither a ``str`` nor an ``int``.
        :raises HubClosedError: the hub is closed.
        :raises RuntimeError: the hub belongs to another event loop.
        """
        key = self.key(request)
        if key is None:
            return None
        if self._places is None:
            self._take_here(key)
            return key
        name = self._name_of(key)
        self._take_here(key)
        try:
            place = await self._places.take(name, self.most)
            if place is None:
                raise unavailable("too many streams", 429)
        except BaseException:
            self._give_back_here(key)
            raise
        return _Shared(key, name, place)

    def _take_here(self, key: Hashable) -> None:
        try:
            with self._lock:
                taken = self._open.get(key, 0)
                if taken < self.most:
                    self._open[key] = taken + 1
                    return
        except TypeError as exc:
            raise TypeError(f"the key of a Limit must be hashable, not {key!r:.80}") from exc
        raise unavailable("too many streams", 429)

    def give_back(self, place: Hashable) -> None:
        """Give back a place that was taken; ``None``: there is none."""
        if isinstance(place, _Shared):
            assert self._places is not None
            self._give_back_here(place.key)
            self._places.give_back(place.name, place.place)
        elif place is not None:
            self._give_back_here(place)

    def _give_back_here(self, key: Hashable) -> None:
        with self._lock:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]

    def _name_of(self, key: Hashable) -> str:
        """Return what the log calls the places of a key, which may be long."""
        if not isinstance(key, (str, int)):
            raise TypeError(f"the key of a Limit with a hub must be a str or int, not {key!r:.80}")
        from hashlib import blake2b  # slow to import, and few ask

        text = f"{type(key).__name__} {self._name} {key}"
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
