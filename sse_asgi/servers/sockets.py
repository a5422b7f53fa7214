"""Abort the connection of a client that takes nothing any more.

ASGI has no message for this. A server that closes such a connection first waits until the client
has taken what was written. It would wait for ever, and not stop before that. So the socket is
looked for among the open files of this process, by the two addresses of the scope, and is shut
down. The server then sees a broken connection.

Nothing happens if no open file has these addresses. Then the other side may be a proxy that has put
the address of its client there, and that has timeouts of its own. Or the connection is a UNIX
socket or HTTP/3, or there is no list of open files (Windows).
"""

from __future__ import annotations

import math
import os
import socket
import struct
import sys
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

from ..runtime import current

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..types import Scope

__all__ = ["Connections"]

#: Host and port of the client, host and port of the server; no host for "any address".
Ends: TypeAlias = tuple[str, int, str, int]

#: The largest share of time to spend on the list of open files: many clients may stall together.
SHARE = 0.1

#: A client that takes nothing of what waits for it is stuck after so many seconds.
MOMENT = 0.5

#: The folder that lists the open files of this process.
_FILES = next(filter(os.path.isdir, ("/proc/self/fd", "/dev/fd")), None)

#: The hosts that mean "all addresses".
_ANY = ("0.0.0.0", "::")  # noqa: S104  it is only compared

#: Makes the system drop what was not sent when the server closes the socket (SO_LINGER).
_FORGET = struct.pack("ii", 1, 0)


class _TooEarly(Exception):
    """It is too early to look at the open files again."""


class Connections:
    """The connections of this process, as one event loop knows them."""

    def __init__(self) -> None:
        self._runtime = current()
        self._files: dict[Ends, int] = {}
        self._look_again = -math.inf

    def abort(self, scope: Scope) -> bool:
        """Shut down the connection that a request came by. Return whether it was found.

        If it is too early to look, return False and try again later.
        """
        ends = _ends_of_scope(scope)
        return ends is not None and self._abort(ends)

    def abort_if_stuck(self, scope: Scope, seconds: float) -> None:
        """Shut the connection down if the client takes nothing of what was written.

        This looks in so many seconds for the first time, and goes on until the client has taken
        all of it.
        """
        ends = _ends_of_scope(scope)
        if ends is not None:
            self._runtime.after(seconds, partial(self._see_whether_stuck, ends, None))

    def _abort(self, ends: Ends) -> bool:
        try:
            connection = self._find(ends)
        except _TooEarly:
            self._later(partial(self._abort, ends))
            return False
        if connection is None:
            return False
        with connection:
            _shut_down(connection)
        return True

    def _see_whether_stuck(self, ends: Ends, before: int | None) -> None:
        try:
            connection = self._find(ends)
        except _TooEarly:
            self._later(partial(self._see_whether_stuck, ends, before))
            return
        if connection is None:
            return
        with connection:
            waits, taken = _progress(connection)
            if waits and taken == before:
                _shut_down(connection)
            elif waits:
                self._runtime.after(MOMENT, partial(self._see_whether_stuck, ends, taken))

    def _find(self, ends: Ends) -> socket.socket | None:
        """Return a duplicate of the socket that connects these addresses, or ``None``.

        :raises _TooEarly: it is not known yet.
        """
        found = self._duplicate(ends)
        if found is None:
            self._look()
            found = self._duplicate(ends)
        return found

    def _look(self) -> None:
        now = self._runtime.clock()
        if now < self._look_again:
            raise _TooEarly
        begin = perf_counter()
        try:
            self._files = _open_connections()
        except OSError as exc:  # there are too many files: it takes one to list them
            self._look_again = now + MOMENT
            raise _TooEarly from exc
        self._look_again = now + (perf_counter() - begin) / SHARE

    def _later(self, function: Callable[[], object]) -> None:
        self._runtime.after(max(self._look_again - self._runtime.clock(), 0), function)

    def _duplicate(self, ends: Ends) -> socket.socket | None:
        if ends not in self._files:
            return None
        try:
            number = os.dup(self._files[ends])
        except OSError:
            return None
        # Other threads open and close files, too: the number may belong to another file now.
        now = _ends_of_file(number)
        if now is not None and ends in (now, _on_any_host(now)):
            return socket.socket(fileno=number)
        os.close(number)
        return None


def _ends_of_scope(scope: Scope) -> Ends | None:
    try:
        client, server = scope["client"], scope["server"]
        # granian has the ports as str, and as the server's host what it listens on.
        host = "" if server[0] in _ANY else server[0]
        ends = (client[0], int(client[1]), host, int(server[1]))
    except (KeyError, TypeError, IndexError, ValueError):
        return None
    # A proxy's X-Forwarded-For has no port.
    return ends if ends[1] else None


def _open_connections() -> dict[Ends, int]:
    """Return the connections among the open files.

    :raises OSError: they can't be listed now.
    """
    found: dict[Ends, int] = {}
    for name in os.listdir(_FILES) if _FILES else ():
        if (ends := _ends_of_file(int(name))) is not None:
            found[ends] = int(name)
            ends = _on_any_host(ends)
            # -1: two connections match, so neither is used.
            found[ends] = -1 if ends in found else int(name)
    return found


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FORGET)
        connection.shutdown(socket.SHUT_RDWR)


def _progress(connection: socket.socket) -> tuple[bool, int]:
    """Return whether something waits for the client, and how much the client has taken so far."""
    if not sys.platform.startswith("linux"):
        return True, 0
    import fcntl  # not everywhere
    import termios

    try:
        (waits,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
        # tcpi_bytes_acked of struct tcp_info.
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
        (taken,) = struct.unpack_from("Q", info, 120)
    except (OSError, struct.error):
        return False, 0
    return waits > 0, taken


def _on_any_host(ends: Ends) -> Ends:
    return *ends[:2], "", ends[3]


def _ends_of_file(number: int) -> Ends | None:
    try:
        borrowed = socket.socket(fileno=number)
    except OSError:  # no socket
        return None
    try:
        if borrowed.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        client: Any = borrowed.getpeername()
        server: Any = borrowed.getsockname()
        return client[0], client[1], server[0], server[1]
    except OSError:  # no connection
        return None
    finally:
        borrowed.detach()
