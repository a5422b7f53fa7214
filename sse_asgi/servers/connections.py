"""The connections of all streams of one event loop: each is found by objects of its server.

Some servers do not always tell that a client has left. If a client sends more requests while it has
a response (54 bytes are two of them), they stop reading, or tell only the last request. So somebody
has to look now and then. One timer looks for all streams.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from ..runtime import current
from ..runtime.base import nothing
from . import granian, hypercorn, uvicorn
from .connection import Connection, TransportConnection, innermost
from .unread import Unread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..runtime.base import Cancel
    from ..types import Scope, Send
    from .base import Server, Stopping

__all__ = ["Connections"]

#: How often to look for connections that were closed, in seconds.
PERIOD = 5.0

#: For how long to do so without a pause, and for how long to pause, in seconds.
SLICE, PAUSE = 0.005, 0.05

#: A client that takes nothing of what waits for it is stuck after so many seconds.
MOMENT = 0.5

#: The largest share of time to spend on lists of requests: many clients may stall together.
SHARE = 0.1

#: How long to keep such a list, in seconds. It keeps its requests alive.
KEPT = 1.0

#: Modules that are loaded where a server runs that is known here.
_ON_ASYNCIO = ("uvicorn.server", "hypercorn.asyncio.run", "granian._futures", "daphne.server")
_ON_TRIO = ("hypercorn.trio.run",)

#: The function that a server runs a request in, in a task of its own.
_RUNS_REQUEST = {"run_asgi": "uvicorn", "_handle": "hypercorn", "future_watcher": "granian"}


class Request(NamedTuple):
    """A request as its server knows it."""

    server: str
    scope: Any
    #: The object that is made for the request.
    of_server: Any


class Connections:
    """See :class:`~sse_asgi.servers.base.Connections`."""

    def __init__(self) -> None:
        self._runtime = current()
        self._files = granian.Files(self._runtime.clock)
        self._requests: dict[int, Request | None] = {}
        self._look_again = -math.inf
        self._watched: dict[Server, Callable[[], object]] = {}
        self._unread: dict[int, Unread] = {}
        self._stop: Cancel = nothing
        self._pause: Cancel = nothing

    # -- to find one -----------------------------------------------------------------------------

    def find(self, scope: Scope, send: Send) -> Connection | None:
        """Return the connection of a request.

        If ``send`` is a server's own, its object is at hand. A middleware may have put another in
        its place, a copy in the place of the scope, and run the application in another task. Then
        all requests of the event loop are listed, at most a tenth of the time.

        :returns: ``None`` if it is too early for that.
        """
        if not self._any_server():
            return Connection()
        request = _by_send(scope, send)
        if request is None:
            request = self._listed(scope)
            if request is None and not self._list():
                return None
            request = request or self._listed(scope)
        return Connection() if request is None else self._connection(request)

    def _any_server(self) -> bool:
        names = _ON_ASYNCIO if self._runtime.joins else _ON_TRIO
        return any(name in sys.modules for name in names)

    def _connection(self, request: Request) -> Connection:
        try:
            if request.server == "uvicorn":
                return uvicorn.connection(request.of_server)
            if request.server == "hypercorn":
                return hypercorn.connection(request.of_server)
            return granian.connection(request.scope, self._files)
        except (AttributeError, TypeError):  # a later version has it elsewhere
            return Connection()

    def _listed(self, scope: Scope) -> Request | None:
        # Both are made for one request. A middleware may have put another object in the place of
        # one of them, but hardly of both.
        for name in ("headers", "state"):
            request = self._requests.get(id(scope.get(name)))
            if request is not None and request.scope.get(name) is scope[name]:
                return request
        return None

    def _list(self) -> bool:
        """List all requests. Return whether that was done."""
        now, begin = self._runtime.clock(), perf_counter()
        if now < self._look_again:
            return False
        if not self._requests:
            self._runtime.after(KEPT, self._requests.clear)
        self._requests.clear()
        for request in self._all():
            for name in ("headers", "state"):
                key = id(request.scope.get(name))
                # An object that two of them share tells nothing.
                self._requests[key] = None if key in self._requests else request
        self._look_again = now + (perf_counter() - begin) / SHARE
        return True

    def _all(self) -> Iterator[Request]:
        for coroutine in self._runtime.coroutines():
            code = getattr(coroutine, "cr_code", None)
            server = _RUNS_REQUEST.get(getattr(code, "co_name", ""))
            frame = getattr(coroutine, "cr_frame", None) if server else None
            if frame is None or server is None:
                continue
            if not frame.f_globals.get("__name__", "").startswith(f"{server}."):
                continue
            request = _by_task(server, frame.f_locals)
            if request is not None and isinstance(request.scope, dict):
                yield request

    # -- to cut one ------------------------------------------------------------------------------

    def cut_if_stuck(self, connection: Connection, seconds: float) -> None:
        """Cut a connection if the client takes nothing of what was written.

        This looks in so many seconds for the first time, and goes on until the client has taken
        all of it.
        """
        if type(connection) is not Connection:
            self._runtime.after(seconds, partial(self._see_whether_stuck, connection, self))

    def _see_whether_stuck(self, connection: Connection, before: object) -> None:
        if connection.waits() is False:
            return
        taken = connection.taken()
        if taken == before:
            connection.cut()
        else:
            self._runtime.after(MOMENT, partial(self._see_whether_stuck, connection, taken))

    def cut_when_stopping(self, connection: Connection, seconds: float, stopping: Stopping) -> None:
        """Do so when the server is told to stop, if something waits for the client then."""
        if not isinstance(connection, TransportConnection):  # a later version has it elsewhere
            return
        key = id(connection.transport)
        if key not in self._unread:
            cut = partial(self.cut_if_stuck, connection, seconds)
            taken = partial(self._unread.pop, key)
            self._unread[key] = Unread(connection, self._runtime, stopping, cut=cut, taken=taken)

    # -- to see which are closed -----------------------------------------------------------------

    def watch(self, server: Server, lost: Callable[[], object]) -> None:
        """Call a function when the connection is found closed, until :meth:`forget`."""
        if not self._any_server():
            return
        self._watched[server] = lost
        if self._stop is nothing:
            self._stop = self._runtime.every(PERIOD, self._look)

    def forget(self, server: Server) -> None:
        """Undo :meth:`watch`."""
        self._watched.pop(server, None)
        if not self._watched:
            self._stop()
            self._pause()
            self._stop = self._pause = nothing

    def _look(self) -> None:
        """Begin to look at all of them."""
        self._pause()
        self._go_on(iter(tuple(self._watched.items())))

    def _go_on(self, rest: Iterator[tuple[Server, Callable[[], object]]]) -> None:
        ends = perf_counter() + SLICE
        for server, lost in rest:
            if server in self._watched and server.is_gone():
                self.forget(server)
                lost()
            if perf_counter() > ends:
                self._pause = self._runtime.after(PAUSE, partial(self._go_on, rest))
                return


def _by_send(scope: Scope, send: Send) -> Request | None:
    of_server = getattr(innermost(send), "__self__", None)
    module = type(of_server).__module__
    if module.startswith("uvicorn.protocols.http."):
        return Request("uvicorn", scope, of_server)
    if module == "hypercorn.protocol.http_stream":
        return Request("hypercorn", scope, of_server)
    if module == "granian._granian":
        return Request("granian", scope, scope)
    return None


def _by_task(server: str, variables: Any) -> Request | None:
    """Return the request of a task of a server, by the variables of its coroutine."""
    try:
        if server == "granian":
            scope = variables["watcher"].scope
            return Request(server, scope, scope)
        of_server = variables["self"] if server == "uvicorn" else variables["send"].__self__
        return Request(server, of_server.scope, of_server)
    except (KeyError, AttributeError):  # a later version has it elsewhere
        return None
