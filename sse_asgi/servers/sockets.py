"""What the operating system tells of a socket, and how to break its connection off.

A socket is what has the methods of one: :class:`socket.socket`, and what asyncio, uvloop and trio
have in its place.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from contextlib import suppress
from typing import Any

__all__ = ["forget", "has_hung_up", "is_unix", "shut_down", "taken", "waits"]

#: Makes the system drop what was not sent when the socket is closed (SO_LINGER).
_FORGET = struct.pack("ii", 1, 0)

#: The size of ``struct tcp_info`` up to ``tcpi_bytes_acked``, and where that is in it (Linux).
_INFO, _ACKED = 128, 120

#: "The peer has closed its end", where the system tells so.
_HUNG_UP = getattr(select, "POLLRDHUP", 0)


def is_unix(sock: Any) -> bool:
    """Return whether a socket is a UNIX socket."""
    return bool(sock.family == getattr(socket, "AF_UNIX", None))


def waits(sock: Any) -> bool | None:
    """Return whether the system holds something that the client has not taken.

    :returns: ``None`` if that can't be known.
    """
    unsent = _unsent(sock)
    return None if unsent is None else unsent > 0


def taken(sock: Any) -> object | None:
    """Return a value that changes when the client takes something, and by nothing else.

    For TCP that is how many bytes the client has acknowledged. A probe of a window that is closed
    does not change it, nor what is written meanwhile. For a UNIX socket it is how much waits in it,
    which also changes by what is written.

    :returns: ``None`` if that can't be known.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        if is_unix(sock):
            return _unsent(sock)
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO)
        acked: int = struct.unpack_from("Q", info, _ACKED)[0]
    except (OSError, ValueError, struct.error):
        return None
    return acked


def has_hung_up(sock: Any) -> bool:
    """Return whether the client has closed its end, or the connection is broken.

    This looks past what the client has sent before. ``False`` if it can't be known (Windows).
    """
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    try:
        poll.register(sock.fileno(), _HUNG_UP)  # errors are told in any case
        return bool(poll.poll(0))
    except (OSError, ValueError):
        return False


def forget(sock: Any) -> None:
    """Have the system drop what was not sent when the socket is closed."""
    with suppress(OSError, ValueError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FORGET)


def shut_down(sock: Any) -> None:
    """Break the connection off. The socket stays open; who waits for it is woken."""
    forget(sock)
    with suppress(OSError, ValueError):
        sock.shutdown(socket.SHUT_RDWR)


def _unsent(sock: Any) -> int | None:
    if not sys.platform.startswith("linux"):
        return None
    import fcntl  # not everywhere
    import termios

    try:
        (unsent,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    except (OSError, ValueError, struct.error):
        return None
    assert isinstance(unsent, int)
    return unsent
