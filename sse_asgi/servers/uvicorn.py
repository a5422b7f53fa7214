"""uvicorn: its ``send`` writes to the connection and returns, so no task is needed to send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Server
from .connection import TransportConnection, innermost

if TYPE_CHECKING:
    from typing import ClassVar

    from ..types import Send

__all__ = ["Uvicorn", "UvicornConnection", "has_unwritten", "is_closing", "is_uvicorns"]

#: The modules whose ``send`` waits, if at all, before it writes, and only for its client.
_SEND_AT_ONCE = ("uvicorn.protocols.http.h11_impl", "uvicorn.protocols.http.httptools_impl")


class Uvicorn(Server):
    """See :class:`~sse_asgi.servers.base.Server`."""

    __slots__ = ("_transport",)

    sends_at_once: ClassVar[bool] = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._transport = _transport(self.send)

    def is_lost(self) -> bool:
        """Return whether the transport is closing. asyncio warns of what is written then."""
        transport = self._transport
        return transport is not None and transport.is_closing() and self.is_gone()

    def bound_unread(self, seconds: float) -> None:
        """The same if the server is told to stop later: it waits for all connections, for ever."""
        if self._stopping.signalled:
            super().bound_unread(seconds)
        elif has_unwritten(self.send):
            self._connections.cut_when_stopping(self.connection, seconds, self._stopping)


class UvicornConnection(TransportConnection):
    """The connection of a request.

    If a client sends further requests before it has the response, uvicorn tells only the last of
    them that the connection was closed, or stops reading and does not notice.

    :param cycle: the ``RequestResponseCycle`` of the request.
    """

    __slots__ = ("_cycle",)

    def __init__(self, cycle: Any) -> None:
        super().__init__(cycle.transport)
        self._cycle = cycle

    def is_closed(self) -> bool:
        """Return whether the connection is closed. The client is asked if uvicorn does not read."""
        if self._cycle.disconnected or self.transport.is_closing():
            return True
        return getattr(self._cycle.flow, "read_paused", True) and self.has_hung_up()

    def tell(self) -> None:
        """Do for this request what uvicorn does for the last one of the connection.

        Otherwise it logs an error when the application returns, since the response is not complete.
        """
        if self._note():
            self.transport.abort()

    def cut(self) -> bool:
        """Abort the transport. uvicorn tells that to the last request, which may be another."""
        self._note()
        return super().cut()

    def _note(self) -> bool:
        """Note that the connection is closed. Return whether that was new."""
        if self._cycle.disconnected:
            return False
        self._cycle.disconnected = True
        self._cycle.message_event.set()
        return True


class UvicornHTTP2(UvicornConnection):
    """The same on HTTP/2, which is experimental. Its ``send`` waits for the connection alone."""

    __slots__ = ()

    shared: ClassVar[bool] = True

    def reset(self) -> bool:
        """Reset the stream."""
        self._cycle.abort_stream()
        return True


def is_uvicorns(send: Any) -> bool:
    """Return whether a ``send`` is uvicorn's, with no wrapper that changes what it does."""
    send = innermost(send)
    cycle = getattr(send, "__self__", None)
    return getattr(send, "__name__", "") == "send" and type(cycle).__module__ in _SEND_AT_ONCE


def is_closing(send: Send) -> bool:
    """Return whether the transport that a ``send`` of uvicorn's writes to is closing."""
    transport = _transport(send)
    return transport is not None and bool(transport.is_closing())


def has_unwritten(send: Send) -> bool:
    """Return whether that transport has something that it could not write yet."""
    transport = _transport(send)
    return transport is not None and transport.get_write_buffer_size() > 0


def _transport(send: Send) -> Any:
    return getattr(innermost(send).__self__, "transport", None)  # a later version may have none


def connection(cycle: Any) -> UvicornConnection:
    """Return the connection of a ``RequestResponseCycle`` of uvicorn's."""
    return (UvicornHTTP2 if hasattr(cycle, "abort_stream") else UvicornConnection)(cycle)
