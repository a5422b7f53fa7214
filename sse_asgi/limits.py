"""How many streams each user, or each address, may have open at once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from .errors import unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from .request import SSERequest

__all__ = ["Limit"]


class Limit:
    """How many streams may be open at once for each key, in this process.

    ::

        app = sse_app(news, limit=Limit(5, key=lambda request: request.cookies.get("user")))

    One more is answered with 429 (Too Many Requests, RFC 6585) and a Retry-After. Applications and
    responses that are given the same Limit count together, in any event loops and threads.

    :param most: how many streams.
    :param key: a function that is called with the :class:`~sse_asgi.SSERequest` before its stream
        opens, and returns what counts: a user, an address. For ``None`` there is no limit. It may
        raise :class:`~sse_asgi.HTTPError`.
    :raises TypeError: for a number that is no ``int``, or a key that can't be called.
    :raises ValueError: for a number below 1.
    """

    def __init__(self, most: int, *, key: Callable[[SSERequest], Hashable]) -> None:
        if not isinstance(most, int) or isinstance(most, bool):
            raise TypeError(f"a Limit must be an int, not {most!r:.80}")
        if most < 1:
            raise ValueError(f"a Limit must be at least 1, not {most}")
        if not callable(key):
            raise TypeError(f"key must be a function of the request, not {key!r:.80}")
        self.most: int = most
        self.key: Callable[[SSERequest], Hashable] = key
        self._lock = threading.Lock()
        self._open: dict[Hashable, int] = {}

    def __repr__(self) -> str:
        return f"<Limit {self.most} keys={len(self._open)}>"

    def take(self, request: SSERequest) -> Hashable:
        """Take a place for a stream, and return its key. The application calls this.

        :raises HTTPError: 429, if there is none.
        :raises TypeError: the key can't be looked up, since it has no hash.
        """
        key = self.key(request)
        if key is None:
            return None
        try:
            with self._lock:
                taken = self._open.get(key, 0)
                if taken < self.most:
                    self._open[key] = taken + 1
                    return key
        except TypeError as exc:
            raise TypeError(f"the key of a Limit must be hashable, not {key!r:.80}") from exc
        raise unavailable("too many streams", 429)

    def give_back(self, key: Hashable) -> None:
        """Give a place back."""
        if key is None:
            return
        with self._lock:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]
