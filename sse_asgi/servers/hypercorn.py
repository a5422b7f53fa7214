"""hypercorn: its connections, and what differs on HTTP/2 and HTTP/3, and on trio."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .base import Server
from .connection import Connection, SocketConnection, TransportConnection
from .sockets import forget

if TYPE_CHECKING:
    from typing import ClassVar

    from ..types import Scope

__all__ = ["HypercornHTTP2", "HypercornTrio", "HypercornTrioHTTP2", "connection", "kind"]

#: The error code of HTTP/2 for a stream that is not needed any more (RFC 9113, section 7).
_CANCEL = 0x8


class HypercornHTTP2(Server):
    """hypercorn on HTTP/2 and HTTP/3."""

    __slots__ = ()

    hides_broken_responses: ClassVar[bool] = True
    #: When it stops, it waits until data is written, and not until an empty last message is.
    loses_empty_ends: ClassVar[bool] = True


class HypercornTrio(Server):
    """hypercorn on trio."""

    __slots__ = ()

    shields_sends: ClassVar[bool] = True

    def release(self) -> None:
        """Close the connection if hypercorn has noted that it is lost: it may forget to."""
        connection = self.connection
        if isinstance(connection, _HTTP1):
            connection.close_if_lost()


class HypercornTrioHTTP2(HypercornTrio, HypercornHTTP2):
    """hypercorn on trio, on HTTP/2 and HTTP/3."""

    __slots__ = ()


def kind(scope: Scope) -> type[Server]:
    """Return the class for a request that may have come from hypercorn."""
    # Of all servers only hypercorn offers HTTP/2 push.
    http2 = scope.get("http_version") in ("2", "3") and "http.response.push" in (
        scope.get("extensions") or {}
    )
    # No scope tells whether it runs on trio.
    if "hypercorn.trio" in sys.modules:
        return HypercornTrioHTTP2 if http2 else HypercornTrio
    return HypercornHTTP2 if http2 else Server


# -- the connection ------------------------------------------------------------------------------


def connection(stream: Any) -> Connection:
    """Return the connection of an ``HTTPStream`` of hypercorn's.

    :raises AttributeError: a later version has its objects elsewhere.
    """
    protocol = stream.send.__self__  # of HTTP/1.1, HTTP/2 or HTTP/3
    if (quic := getattr(protocol.send, "args", None)) is not None:
        return _HTTP3(*quic)
    server = protocol.send.__self__  # one for each connection of TCP
    if hasattr(server, "writer"):
        tcp: Connection = TransportConnection(server.writer.transport)
    elif hasattr(server.stream, "transport_stream"):  # TLS
        tcp = SocketConnection(server.stream.transport_stream.socket)
    else:
        tcp = _TrioSocket(server.stream.socket)
    http2 = hasattr(protocol, "stream_buffers")
    return (_HTTP2 if http2 else _HTTP1)(tcp, stream, protocol)


class _TrioSocket(SocketConnection):
    """The socket of a connection on trio, without TLS."""

    __slots__ = ()

    def cut(self) -> bool:
        """Close the socket.

        hypercorn does not close it if the response is not complete and it has further requests.
        """
        forget(self._sock)
        self.close()
        return True

    def close(self) -> None:
        """Close the socket. It is trio's: who waits for it is woken."""
        self._sock.close()


class _HTTP1(Connection):
    """A connection of HTTP/1.1.

    :param tcp: the connection.
    :param stream: the ``HTTPStream``.
    :param protocol: the ``H11Protocol`` of the connection.
    """

    __slots__ = ("_protocol", "_stream", "_tcp")

    def __init__(self, tcp: Connection, stream: Any, protocol: Any) -> None:
        self._tcp = tcp
        self._stream = stream
        self._protocol = protocol

    def is_closed(self) -> bool:
        return self._tcp.is_closed()

    def tell(self) -> None:
        """The same: if hypercorn has further requests, it reads nothing, and does not know."""
        self.settle()

    def settle(self) -> None:
        """Have hypercorn send no error of its own when the application returns.

        If the start of the response was interrupted, hypercorn takes it for not sent. It would
        send a status, and h11, which has begun with another, would raise. On trio that ends the
        server.
        """
        stream, h11 = self._stream, getattr(self._protocol, "connection", None)
        sends = getattr(getattr(h11, "our_state", None), "__name__", "")
        if self._state() == "REQUEST" and sends == "SEND_BODY":
            stream.state = type(stream.state).RESPONSE

    def taken(self) -> object | None:
        return self._tcp.taken()

    def waits(self) -> bool | None:
        return self._tcp.waits()

    def cut(self) -> bool:
        self.tell()
        return self._tcp.cut()

    def close_if_lost(self) -> None:
        """Close the socket if the stream was closed before the end of the response."""
        lost = getattr(self._stream, "closed", False) and self._state() != "CLOSED"
        if lost and isinstance(self._tcp, _TrioSocket):
            self._tcp.close()

    def _state(self) -> str:
        """Return how far the response has come, if hypercorn tells; a later version may not."""
        return str(getattr(getattr(self._stream, "state", None), "name", ""))


class _HTTP2(Connection):
    """A stream of HTTP/2.

    hypercorn has a buffer for each stream, and takes from it what the window of the client allows.

    :param tcp: the connection.
    :param stream: the ``HTTPStream``.
    :param protocol: the ``H2Protocol`` of the connection.
    """

    __slots__ = ("_protocol", "_stream", "_tcp")

    shared: ClassVar[bool] = True

    def __init__(self, tcp: Connection, stream: Any, protocol: Any) -> None:
        self._tcp = tcp
        self._stream = stream
        self._protocol = protocol

    def is_closed(self) -> bool:
        return self._stream.closed or self._tcp.is_closed()

    def progress(self) -> object | None:
        """Return how much waits in the buffer of the stream, and what TCP tells.

        If the window is closed, it is this client that takes nothing. What others of the connection
        take does not count then.
        """
        number = self._stream.stream_id
        try:
            buffered = len(self._protocol.stream_buffers[number].buffer)
            window = self._protocol.connection.local_flow_control_window(number)
        except Exception:  # the stream is over
            return None
        return buffered, self._tcp.taken() if window > 0 or not buffered else None

    def taken(self) -> object | None:
        return self._tcp.taken()

    def waits(self) -> bool | None:
        return self._tcp.waits()

    def cut(self) -> bool:
        return self._tcp.cut()

    def reset(self) -> bool:
        """Reset the stream, as hypercorn does if the client has done so."""
        try:
            self._protocol.connection.reset_stream(self._stream.stream_id, _CANCEL)
            self._protocol.task_group.spawn(self._drop)
        except Exception:  # the stream is over, or the connection
            return False
        return True

    async def _drop(self) -> None:
        from hypercorn.events import RawData
        from hypercorn.protocol.events import StreamClosed

        protocol, number = self._protocol, self._stream.stream_id
        try:
            if (buffer := protocol.stream_buffers.get(number)) is not None:
                await buffer.close()  # whoever waits in it goes on
                protocol.priority.unblock(number)  # it is looked at, and removed
            await self._stream.send(StreamClosed(stream_id=number))
            await protocol.send(RawData(data=protocol.connection.data_to_send()))
        except Exception:  # noqa: S110  this runs in a task of the connection, which goes on
            pass


class _HTTP3(Connection):
    """A stream of HTTP/3.

    hypercorn does not wait there for a client that does not read, and does not tell that it is
    gone.

    :param quic: hypercorn's record of the connection, which has no identifiers when it is over.
    """

    __slots__ = ("_quic",)

    shared: ClassVar[bool] = True

    def __init__(self, quic: Any) -> None:
        self._quic = quic

    def is_closed(self) -> bool:
        return not self._quic.cids
