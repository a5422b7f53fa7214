"""When to connect again (WHATWG HTML 9.2.3). Pure, no I/O, no clock."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Backoff"]

#: In seconds, what is counted at least for a reconnection time when it is doubled: a server may set
#: it to 0, and a thousand clients of a server that restarts must not all come at once.
LEAST = 0.1

#: In seconds, how much longer than the reconnection time a delay is at most.
MOST = 60.0


class Backoff:
    """The schedule of reconnects.

    The standard lets a client wait longer than the reconnection time, never shorter. A delay is the
    reconnection time, and a random part of it, which doubles with each failure in a row.

    :param retry: the reconnection time in milliseconds until the server sets another one.
    :param chance: returns a random number from 0 to 1.
    """

    def __init__(self, retry: int, chance: Callable[[], float] = random.random) -> None:
        self.retry = retry
        self._chance = chance
        #: How many times in a row it has come to nothing.
        self.failures = 0

    def delay(self, at_least: float = 0.0) -> float:
        """Return in how many seconds to connect.

        :param at_least: how many seconds the server has asked to wait (``Retry-After``).
        """
        reconnection_time = self.retry / 1000
        # The doubling ends where it makes no difference any more.
        spread = min(max(reconnection_time, LEAST) * 2.0 ** min(self.failures, 16), MOST)
        return max(reconnection_time, at_least) + self._chance() * spread
