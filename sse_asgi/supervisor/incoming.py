"""What comes from the client while its stream is open: nearly always nothing, until it leaves.

The watchdog receives all messages. The body of the request is not for it, and not to be lost.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from ..types import Message

    class Reader(Protocol):
        """Where the body of the request goes: see :class:`~sse_asgi.request.ReceivedRequest`."""

        @property
        def wants_more(self) -> bool:
            """Whether more should be received."""
            ...

        @property
        def is_read(self) -> bool:
            """Whether somebody reads the body, so that the response must not start."""
            ...

        def when_read(self, function: Callable[[], object] | None) -> None:
            """Call a function when :attr:`is_read` has become false."""
            ...

        def when_wanted(self, function: Callable[[], object] | None) -> None:
            """Call a function when :attr:`wants_more` has become true."""
            ...

        def deliver(self, message: Message) -> None:
            """Take a part of the body."""
            ...

        def lost(self) -> None:
            """Note that the client has left."""
            ...

        def drop(self) -> None:
            """Drop what nobody reads."""
            ...


__all__ = ["Incoming"]

logger: logging.Logger = logging.getLogger("sse_asgi")

#: So many bytes may come in a row. Then the client is listened to less and less often. Otherwise a
#: ``receive()`` that answers at once, for ever, would keep the event loop busy. A message counts as
#: ``LEAST`` at least.
IN_A_ROW, LEAST = 1_048_576, 1024

#: How much later the client is listened to, in seconds: the second time, and at most.
PATIENCE, MOST_PATIENCE = 0.01, 1.0

#: Who repeats a body does so within so many seconds.
AT_ONCE = 0.5

_SWALLOWED = (
    "%d bytes of the request's body came while the response was streaming, and are lost to whoever "
    "reads the body: read it before the response is returned"
)


class Incoming:
    """Where messages of the client go, and when to listen to it again.

    :param reader: takes the body of the request. ``None``: whoever reads it calls ``receive()``,
        so what comes here is lost to it.
    """

    __slots__ = (
        "_asked", "_in_a_row", "_knows", "_patience", "_swallowed", "listen_at", "reader",
    )  # fmt: skip

    def __init__(self, reader: Reader | None) -> None:
        self.reader: Reader | None = reader
        #: When to listen to the client again.
        self.listen_at: float = -math.inf
        self._patience = 0.0
        self._in_a_row = 0
        # How much of a body came that was not for us. It may be a middleware that repeats it.
        self._swallowed = 0
        # Whether that was logged, or is known to be repeated.
        self._knows = False
        # Since when there is no answer.
        self._asked: float | None = None

    def heard(self, message: Message, now: float) -> None:
        """Take a message that is no disconnect."""
        self._asked = None
        size, more = len(message.get("body") or b""), bool(message.get("more_body"))
        reader = self.reader
        if message["type"] == "http.request":
            if reader is not None:
                reader.deliver(message)
            elif self._swallowed:
                self._swallowed, self._knows = 0, True  # it is repeated
            elif size:
                self._swallowed = size
                if more:
                    self._tell()
        if reader is not None and reader.is_read and size:
            self._in_a_row = 0  # that is bounded
            return
        self._in_a_row += max(size, LEAST)
        if not (size and more) or self._in_a_row > IN_A_ROW:
            self.listen_at = now + self._patience  # the first time at once
            self._patience = min(2 * self._patience or PATIENCE, MOST_PATIENCE)

    def asks(self, now: float) -> None:
        """Note that more is about to be received."""
        if self._asked is None:
            self._asked = now

    def hears_nothing(self, now: float) -> None:
        """Log what was lost, if it was not repeated. Pass ``inf`` at the end of the stream."""
        if self._asked is not None and now - self._asked >= AT_ONCE:
            self._tell()

    def _tell(self) -> None:
        if self._swallowed and not self._knows:
            self._knows = True
            logger.error(_SWALLOWED, self._swallowed)
        self._swallowed = 0

    @property
    def pauses(self) -> bool:
        """Whether nothing more is to be received, until somebody reads the body."""
        return self.reader is not None and not self.reader.wants_more
