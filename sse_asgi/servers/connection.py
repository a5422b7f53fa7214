"""The connection of one stream, as far as the objects of its server tell of it."""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

from .sockets import forget, has_hung_up, is_unix, shut_down, taken, waits

if TYPE_CHECKING:
    from typing import ClassVar

__all__ = ["Connection", "SocketConnection", "TransportConnection", "innermost"]

#: The modules with wrappers around ``send`` that only record something.
_PASS_ON = ("starlette._exception_handler", "starlette.middleware.errors")


def innermost(send: Any) -> Any:
    """Return the ``send`` within wrappers that do not change what it does."""
    while isinstance(send, FunctionType) and send.__module__ in _PASS_ON:
        closure = dict(zip(send.__code__.co_freevars, send.__closure__ or (), strict=True))
        if "send" not in closure:
            break
        send = closure["send"].cell_contents
    return send


class Connection:
    """The connection of one stream. This class is one of which nothing is known."""

    __slots__ = ()

    #: Whether other streams may use the connection at the same time.
    shared: ClassVar[bool] = False
    #: How many seconds the server may take to notice that a send was interrupted. The connection is
    #: not to be cut before.
    notices_in: ClassVar[float] = 0

    def is_closed(self) -> bool:
        """Return whether the connection is closed, or the stream was reset by the client."""
        return False

    def tell(self) -> None:
        """Have the server note that the connection is closed, if it has not done so."""

    def settle(self) -> None:
        """Have the server send nothing of its own when the application returns.

        A send was interrupted, so the server may not know what has been sent.
        """

    def progress(self) -> object | None:
        """Return a value that changes when the client takes something of the stream.

        It is to be compared while one ``send`` waits. ``None`` if that can't be seen.
        """
        return self.taken()

    def taken(self) -> object | None:
        """Return the same for all streams of the connection."""
        return None

    def waits(self) -> bool | None:
        """Return whether something waits for the client; ``None`` if that can't be known."""
        return None

    def cut(self) -> bool:
        """Break the connection off. Return whether that could be done."""
        return False

    def reset(self) -> bool:
        """End this stream alone, unfinished. Return whether that could be done."""
        return False


class SocketConnection(Connection):
    """A connection of a server that only has a socket.

    :param sock: see ``sockets.py``.
    """

    __slots__ = ("_sock",)

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def is_closed(self) -> bool:
        """Return whether the socket is closed, on this side or on the other."""
        return self._sock.fileno() < 0 or has_hung_up(self._sock)

    def taken(self) -> object | None:
        """Return what the system tells."""
        return taken(self._sock)

    def waits(self) -> bool | None:
        """Return what the system tells."""
        return waits(self._sock)

    def cut(self) -> bool:
        """Shut the socket down."""
        shut_down(self._sock)
        return True


class TransportConnection(Connection):
    """A connection that a transport of asyncio's writes to.

    :param transport: an :class:`asyncio.Transport`, also one of TLS.
    """

    __slots__ = ("transport",)

    def __init__(self, transport: Any) -> None:
        self.transport: Any = transport

    def is_closed(self) -> bool:
        """Return whether the transport is closing, or would be if it was reading."""
        return self.transport.is_closing() or self.has_hung_up()

    def has_hung_up(self) -> bool:
        """Return whether the client has closed its end."""
        return (sock := self._sock()) is not None and has_hung_up(sock)

    def taken(self) -> object | None:
        """Return what the system tells. If it tells little, add the buffer of the transport."""
        sock = self._sock()
        acked = None if sock is None else taken(sock)
        if acked is not None and not is_unix(sock):
            return acked
        return acked, self.transport.get_write_buffer_size()

    def waits(self) -> bool | None:
        """Return whether something waits in the buffers of the transport or of the system."""
        if self.transport.get_write_buffer_size():
            return True
        sock = self._sock()
        return False if sock is None else waits(sock)

    def cut(self) -> bool:
        """Abort the transport."""
        if (sock := self._sock()) is not None:
            forget(sock)
        self.transport.abort()
        return True

    def _sock(self) -> Any:
        """Return the socket that the transport writes to; ``None`` if it is closed."""
        sock = self.transport.get_extra_info("socket")
        return None if sock is None or sock.fileno() < 0 else sock
