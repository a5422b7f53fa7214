"""granian: its connections are not Python's, and only the operating system knows of them.

A connection is found among the open files of this process, by the two addresses that granian has
put in the scope. A middleware may have put others there, and they may come from the request
(``X-Forwarded-For``). Such a connection may be somebody else's. So addresses are only used that no
header of the request can have brought: see :func:`ends_of`. Nothing tells of one stream of HTTP/2.
"""

from __future__ import annotations

import math
import os
import socket
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

from .connection import Connection, SocketConnection

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar

    from ..types import Scope

__all__ = ["Files", "connection", "ends_of"]

#: Host and port of the client, host and port of the server; no host for "any address".
Ends: TypeAlias = tuple[str, int, str, int]

#: The largest share of time to spend on the list of open files: many clients may stall together.
SHARE = 0.1

#: How long to wait, in seconds, if the files can't be listed.
MOMENT = 0.5

#: The folder that lists the open files of this process.
_FILES = next(filter(os.path.isdir, ("/proc/self/fd", "/dev/fd")), None)

#: The hosts that mean "all addresses".
_ANY = ("0.0.0.0", "::")  # noqa: S104  it is only compared


def connection(scope: Scope, files: Files) -> Connection:
    """Return the connection of a request, by the scope that granian has made.

    :param files: those of the event loop.
    """
    ends = ends_of(scope)
    if ends is None:
        return Connection()
    http1 = str(scope["http_version"]) < "2"
    return (_Unowned if http1 else _UnownedHTTP2)(ends, files)


def ends_of(scope: Scope) -> Ends | None:
    """Return the addresses of the connection that a request came by.

    :returns: ``None`` if they may not be granian's: granian has ports as ``str``, and of a random
        port of the client no header and no query has the digits.
    """
    try:
        client, server = scope["client"], scope["server"]
        host, port = client
        if not (isinstance(port, str) and port.isdigit() and int(port)):
            return None
        digits = port.encode()
        said = [scope["query_string"], scope["raw_path"], *(value for _, value in scope["headers"])]
        if any(digits in value for value in said):
            return None
        return host, int(port), "" if server[0] in _ANY else server[0], int(server[1])
    except (KeyError, TypeError, IndexError, ValueError):
        return None


class Files:
    """The connections among the open files of this process, as one event loop knows them.

    :param clock: of the event loop.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock: Callable[[], float] = clock
        self._files: dict[Ends, int] = {}
        self._listed = self._look_again = -math.inf

    def find(self, ends: Ends) -> socket.socket | None:
        """Return a duplicate of the socket that connects these addresses.

        :returns: ``None`` if there is none, or it is too early to look again.
        """
        found = self._duplicate(ends)
        if found is None and self.clock() >= self._look_again:
            self._look()
            found = self._duplicate(ends)
        return found

    def lack(self, ends: Ends, since: float) -> bool:
        """Return whether no file that was open since some time has these addresses.

        IPv6 has more than one way to write an address, so nothing is known of one.
        """
        return (
            bool(_FILES)
            and self._listed >= since
            and ends not in self._files
            and (":" not in ends[0])
        )

    def _look(self) -> None:
        now, begin = self.clock(), perf_counter()
        try:
            self._files = _open_connections()
        except OSError:  # there are too many files: it takes one to list them
            self._look_again = now + MOMENT
        else:
            self._listed = now
            self._look_again = now + (perf_counter() - begin) / SHARE

    def _duplicate(self, ends: Ends) -> socket.socket | None:
        if self._files.get(ends, -1) < 0:
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


class _Unowned(Connection):
    """A connection whose socket belongs to somebody else. It is borrowed for each look."""

    __slots__ = ("_ends", "_files", "_since")

    #: A send that is under way when the connection is cut makes granian write to its log, in a
    #: thread that needs the GIL for that. When granian stops it waits for this thread, and has the
    #: GIL: for ever.
    notices_in: ClassVar[float] = 0.05

    def __init__(self, ends: Ends, files: Files) -> None:
        self._ends = ends
        self._files = files
        self._since = files.clock()

    def is_closed(self) -> bool:
        """Return whether the client has closed its end, or granian has closed its own."""
        if (sock := self._files.find(self._ends)) is None:
            return self._files.lack(self._ends, self._since)
        with sock:
            return SocketConnection(sock).is_closed()

    def taken(self) -> object | None:
        if (sock := self._files.find(self._ends)) is None:
            return None
        with sock:
            return SocketConnection(sock).taken()

    def waits(self) -> bool | None:
        if (sock := self._files.find(self._ends)) is None:
            return False
        with sock:
            return SocketConnection(sock).waits()

    def cut(self) -> bool:
        if (sock := self._files.find(self._ends)) is None:
            return False
        with sock:
            return SocketConnection(sock).cut()


class _UnownedHTTP2(_Unowned):
    """The same for a stream of HTTP/2."""

    __slots__ = ()

    shared: ClassVar[bool] = True

    def progress(self) -> object | None:
        return None


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
