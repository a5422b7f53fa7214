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
from typing import TYPE_CHECKING, Any, TypeAlias

from anyio.lowlevel import RunVar

from .loops import clock, current_loop, of_this_loop

if TYPE_CHECKING:
    from .types import Scope

__all__ = ["Connections", "connections"]

#: Host and port of the client, host and port of the server; no host for "any address".
Ends: TypeAlias = tuple[str, int, str, int]

#: What a server listens on where it is to be reached by all of its addresses.
_ANY = ("0.0.0.0", "::")  # noqa: S104  it is only compared

#: How soon, in seconds, to look at all open files again: many clients may stall together.
LOOK_AGAIN = 1.0

#: What is not sent yet is forgotten when the server closes the socket (SO_LINGER).
_FORGET = struct.pack("ii", 1, 0)


class Connections:
    """The connections of this process, as one event loop knows them."""

    def __init__(self) -> None:
        self._clock = clock(current_loop())
        self._looked = -math.inf
        self._files: dict[Ends, int] = {}

    def give_up(self, scope: Scope) -> bool:
        """Shut down the connection that a request came by; whether it was found."""
        try:
            client, server = scope["client"], scope["server"]
            # granian has the ports as str, and as the server's host what it listens on.
            host = "" if server[0] in _ANY else server[0]
            ends = (client[0], int(client[1]), host, int(server[1]))
        except (KeyError, TypeError, IndexError, ValueError):
            return False
        connection = self._find(ends)
        if connection is None:
            return False
        with connection, suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FORGET)
            connection.shutdown(socket.SHUT_RDWR)
        return True

    def _find(self, ends: Ends) -> socket.socket | None:
        """A duplicate of the one that connects these addresses."""
        found = self._duplicate(ends)
        if found is None and self._clock() >= self._looked + LOOK_AGAIN:
            self._looked = self._clock()
            self._files = _open_connections()
            found = self._duplicate(ends)
        return found

    def _duplicate(self, ends: Ends) -> socket.socket | None:
        if ends not in self._files:
            return None
        try:
            number = os.dup(self._files[ends])
        except OSError:
            return None
        # Other threads open and close files, too: it may have become another one meanwhile.
        now = _ends_of_file(number)
        if now is not None and ends in (now, _on_any_host(now)):
            return socket.socket(fileno=number)
        os.close(number)
        return None


def _open_connections() -> dict[Ends, int]:
    found: dict[Ends, int] = {}
    for directory in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            for name in os.listdir(directory):
                if (ends := _ends_of_file(int(name))) is not None:
                    found[ends] = int(name)
                    ends = _on_any_host(ends)
                    # Where there are two, it could be either.
                    found[ends] = -1 if ends in found else int(name)
            break
    return found


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


_of_loop: RunVar[Connections] = RunVar("sse_asgi.connections")


def connections() -> Connections:
    """The Connections of the running event loop."""
    return of_this_loop(_of_loop, Connections)
