"""Giving up the connection of a client that takes nothing any more.

ASGI has no message for it, and a server that closes such a connection first waits until the client
has taken what was written: for ever, and it does not stop before that. So its socket is looked for
among the open files of this process, by the two addresses of the scope, and shut down. The server
sees that as what it is, a connection that broke.

Where nothing has these addresses nothing happens: the other side is a proxy that has put its
client's address there (and has timeouts of its own), a UNIX socket, HTTP/3, or there is no list of
open files (Windows).
"""

from __future__ import annotations

import math
import os
import socket
import struct
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

from anyio.lowlevel import RunVar

from .loops import after, clock, current_loop, of_this_loop

if TYPE_CHECKING:
    from .types import Scope

__all__ = ["Connections", "connections"]

#: Host and port of the client, host and port of the server.
Ends: TypeAlias = tuple[str, int, str, int]

#: How much of the time may be spent on looking at all open files: many clients may stall together.
SHARE = 0.1

#: What is not sent yet is forgotten when the server closes the socket (SO_LINGER).
_FORGET = struct.pack("ii", 1, 0)


class Connections:
    """The connections of this process, as one event loop knows them."""

    def __init__(self) -> None:
        self._loop = current_loop()
        self._clock = clock(self._loop)
        self._files: dict[Ends, int] = {}
        self._look_again = -math.inf
        self._missed: list[Ends] = []

    def give_up(self, scope: Scope) -> bool:
        """Shut down the connection that a request came by; whether it was found.

        Where it is too early to look for it again, that is done later.
        """
        try:
            client, server = scope["client"], scope["server"]
            # granian has the ports as str.
            ends = (client[0], int(client[1]), server[0], int(server[1]))
        except (KeyError, TypeError, IndexError, ValueError):
            return False
        if self._shut_down(ends):
            return True
        now = self._clock()
        if now >= self._look_again:
            self._look()
            return self._shut_down(ends)
        if not self._missed:
            after(self._loop, self._look_again - now, self._look_for_missed)
        self._missed.append(ends)
        return False

    def _look(self) -> None:
        begin = perf_counter()
        self._files = _open_connections()
        self._look_again = self._clock() + (perf_counter() - begin) / SHARE

    def _look_for_missed(self) -> None:
        self._look()
        missed, self._missed = self._missed, []
        for ends in missed:
            self._shut_down(ends)

    def _shut_down(self, ends: Ends) -> bool:
        connection = self._duplicate(ends)
        if connection is None:
            return False
        with connection, suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FORGET)
            connection.shutdown(socket.SHUT_RDWR)
        return True

    def _duplicate(self, ends: Ends) -> socket.socket | None:
        if ends not in self._files:
            return None
        try:
            duplicate = socket.socket(fileno=os.dup(self._files[ends]))
        except OSError:
            return None
        # Other threads open and close files, too: it may have become another one meanwhile.
        if _ends(duplicate) == ends:
            return duplicate
        duplicate.close()
        return None


def _open_connections() -> dict[Ends, int]:
    found: dict[Ends, int] = {}
    for directory in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            for name in os.listdir(directory):
                if (ends := _ends_of_file(int(name))) is not None:
                    found[ends] = int(name)
            break
    return found


def _ends_of_file(number: int) -> Ends | None:
    try:
        # With all three given it is not asked for them. What is no socket fails below.
        borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=number)
    except OSError:
        return None
    try:
        return _ends(borrowed)
    finally:
        borrowed.detach()


def _ends(connection: socket.socket) -> Ends | None:
    try:
        client: Any = connection.getpeername()
        server: Any = connection.getsockname()
        return client[0], client[1], server[0], server[1]
    except (OSError, IndexError):  # no connection, or none of the internet
        return None


_of_loop: RunVar[Connections] = RunVar("sse_asgi.connections")


def connections() -> Connections:
    """The Connections of the running event loop."""
    return of_this_loop(_of_loop, Connections)
