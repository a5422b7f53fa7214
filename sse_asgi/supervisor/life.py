"""The state of a stream, and the table of the ways in which it may end. Pure, no I/O.

A stream goes through its states in one direction, and ends for one reason::

    OPEN ── tell ──► DRAINING ──┐
      └──────── close ──────────┴──► CLOSING ── end ──► CLOSED
"""

from __future__ import annotations

import logging
from enum import IntEnum
from typing import NamedTuple

from ..reasons import CloseReason

__all__ = ["WAYS_OUT", "Life", "State", "WayOut"]

logger: logging.Logger = logging.getLogger("sse_asgi")


class State(IntEnum):
    """Where a stream is in its life."""

    OPEN = 0  #: events flow
    DRAINING = 1  #: the source was told to end, and has the grace period to do so
    CLOSING = 2  #: the source is interrupted and closed, within ``cleanup_timeout``
    CLOSED = 3  #: what is left is the end of the response, and ``on_close``


class WayOut(NamedTuple):
    """What the client gets at the end of a stream."""

    #: Whether the response ends with ``more_body=False``. If not, it is broken off.
    complete: bool
    #: Whether a reconnection time of its own is sent before that: the clients of a server that
    #: stops are not to come back all at once.
    farewell: bool = False
    #: Whether an event is sent that the source yields when it is cancelled.
    last_event: bool = False


#: How a stream ends, for each reason. A client that has left gets nothing. What an error becomes is
#: the business of ``on_error``: without it the response is broken off.
WAYS_OUT: dict[CloseReason, WayOut] = {
    CloseReason.FINISHED: WayOut(complete=True),
    CloseReason.CLIENT_DISCONNECTED: WayOut(complete=False),
    CloseReason.SHUTDOWN: WayOut(complete=True, farewell=True, last_event=True),
    CloseReason.SEND_TIMEOUT: WayOut(complete=False),
    CloseReason.MAX_LIFETIME: WayOut(complete=True, farewell=True, last_event=True),
    CloseReason.ERROR: WayOut(complete=False),
    CloseReason.CANCELLED: WayOut(complete=True, last_event=True),
}

#: A stream that was told to end keeps that reason if one of these comes: it does what it was told.
_AS_TOLD = (CloseReason.FINISHED, CloseReason.CANCELLED)


class Life:
    """The state of one stream, why it ends, and with which exception."""

    __slots__ = ("cancelled", "closing", "error", "leaving", "reason", "state")

    def __init__(self) -> None:
        self.state: State = State.OPEN
        #: Whether the state is CLOSING or CLOSED. This is looked at for each event.
        self.closing: bool = False
        #: Why the stream has ended, or is about to.
        self.reason: CloseReason | None = None
        #: What code of the user's has raised. The first exception counts.
        self.error: BaseException | None = None
        #: What came from around the application, such as a cancellation. It goes on its way when
        #: the stream has ended.
        self.leaving: BaseException | None = None
        #: Whether somebody around the application has cancelled it, and waits for it.
        self.cancelled: bool = False

    def tell(self, reason: CloseReason) -> bool:
        """Tell the stream to end. Return whether it was open before."""
        if self.state is not State.OPEN:
            return False
        self.state, self.reason = State.DRAINING, reason
        return True

    def close(self, reason: CloseReason) -> bool:
        """Close the stream, for this reason unless it was told one. Return whether that is new."""
        if self.closing:
            return False
        if self.state is State.OPEN or reason not in _AS_TOLD:
            self.reason = reason
        self.state, self.closing = State.CLOSING, True
        return True

    def fail(self, error: BaseException) -> None:
        """Close the stream because code of the user's has raised."""
        self.close(CloseReason.ERROR)
        self.note(error)

    def note(self, error: BaseException) -> None:
        """Note that code of the user's has raised. A second exception is logged."""
        if self.error is None:
            self.error = error
        else:
            logger.error("another exception while the source was closed", exc_info=error)

    def end(self) -> WayOut:
        """Begin the end: the source is closed. Return what the client gets."""
        self.close(CloseReason.CANCELLED if self.error is None else CloseReason.ERROR)
        self.state = State.CLOSED
        return self.way_out

    @property
    def way_out(self) -> WayOut:
        """What the client gets, as far as it is known why the stream ends."""
        return WAYS_OUT[self.reason or CloseReason.FINISHED]
