"""A server, as a stream sees it: what ASGI promises, and where servers differ from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from .connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar, Protocol

    from ..types import Message, Receive, Scope, Send

    class Stopping(Protocol):
        """An object that knows whether the server was told to stop: a Shutdown."""

        signalled: bool

        def listen(self, listener: Any, runtime: None = None, *, at_once: bool = False) -> None:
            """Call ``listener.shut_down()`` when it is told so, and when streams are to end."""
            ...

        def forget(self, listener: Any) -> None:
            """Undo :meth:`listen`."""
            ...

    class Connections(Protocol):
        """The connections of an event loop: see ``connections.py``."""

        def find(self, scope: Scope, send: Send) -> Connection | None:
            """Return the connection of a request; ``None`` if it is too early to look for it."""
            ...

        def watch(self, server: Server, lost: Callable[[], object]) -> None:
            """Call a function when the connection is found closed, until :meth:`forget`."""
            ...

        def forget(self, server: Server) -> None:
            """Undo :meth:`watch`."""
            ...

        def cut_if_stuck(self, connection: Connection, seconds: float) -> None:
            """Cut a connection unless its client takes something within so many seconds."""
            ...

        def cut_when_stopping(
            self, connection: Connection, seconds: float, stopping: Stopping
        ) -> None:
            """Do so when the server is told to stop, if something waits for the client then."""
            ...


__all__ = ["Server", "send_at_once"]


def send_at_once(send: Send, message: Message) -> bool:
    """Send a message by a ``send`` that waits, if at all, before it writes. Do not wait.

    This raises what ``send`` raises.

    :returns: whether it was sent. If not, ``send`` waits for the client, and has written nothing.
    """
    sending: Any = send(message)
    try:
        sending.send(None)
    except StopIteration:
        return True
    sending.close()
    return False


#: How long, in seconds, to wait until the server sees that a connection was aborted. HTTP/1.1 takes
#: one iteration of the event loop. With HTTP/2 it takes a moment to see whether the connection is
#: stuck, if it is to be cut.
SEEN_HTTP1, SEEN_HTTP2 = 0.2, 1.0


class Server:
    """The server of one request. This class is a server that keeps to ASGI.

    A server that differs is a subclass, in a file of its own, and ``__init__.py`` says when it is
    used. It overrides attributes or methods of this class. Whether a server is stopping is seen in
    ``running.py``.

    :param scope: the scope of the request.
    :param send: the ``send`` of the request.
    :param stopping: knows whether the server was told to stop.
    :param connections: the connections of that event loop.
    """

    __slots__ = (
        "_connection", "_connections", "_stopping", "aborted", "scope", "send",
    )  # fmt: skip

    #: Whether ``send`` waits, if at all, before it writes, and only for its client. Any task and
    #: any callback may call such a ``send``, and drop it if it waits.
    sends_at_once: ClassVar[bool] = False
    #: Whether a cancellation does not reach a ``send`` that waits.
    shields_sends: ClassVar[bool] = False
    #: Whether the client is left waiting if the application ends without a last message. Other
    #: servers close the connection, or reset the stream of HTTP/2, and a client can tell that from
    #: the regular end of a response.
    hides_broken_responses: ClassVar[bool] = False
    #: Whether an empty last message may be lost when the server stops.
    loses_empty_ends: ClassVar[bool] = False

    def __init__(
        self,
        scope: Scope,
        send: Send,
        stopping: Stopping,
        connections: Connections,
    ) -> None:
        self._stopping = stopping
        self._connections = connections
        # None until it was asked for: few streams do.
        self._connection: Connection | None = None
        #: The scope of the request.
        self.scope: Scope = scope
        #: What sends an ASGI message.
        self.send: Send = send
        #: Whether the connection was aborted, or the stream reset, as far as that is known.
        self.aborted: bool = False

    @property
    def cancels_when_stopping(self) -> bool:
        """Whether the server cancels its applications as soon as it is told to stop.

        If one of them ends by that cancellation, the server does not wait for the others.
        """
        return False

    def attach(self, shut_down: Callable[[], object], lost: Callable[[], object]) -> None:
        """Begin to serve a stream. :meth:`detach` undoes this.

        :param shut_down: called when the server stops, if the server has a way of its own to tell
            applications so.
        :param lost: called, within some seconds, when the connection is found closed. This is for
            servers that do not always tell so by ``receive()``.
        """
        self._connections.watch(self, lost)

    def detach(self) -> None:
        """Undo :meth:`attach`: the stream has ended, and the server may stop."""
        self._connections.forget(self)

    def release(self) -> None:
        """Release the response: nothing is sent after this."""

    # -- the connection --------------------------------------------------------------------------

    @property
    def connection(self) -> Connection:
        """The connection of the stream. It is looked for when it is asked for."""
        if self._connection is not None:
            return self._connection
        found = self._find_connection()
        if found is None:  # it is too early
            return Connection()
        self._connection = found
        return found

    def _find_connection(self) -> Connection | None:
        return self._connections.find(self.scope, self.send)

    def is_gone(self) -> bool:
        """Return whether the connection is closed, whatever ``receive()`` has told.

        If it is, the server is made to note it, too. ``False`` if that can't be known.
        """
        connection = self.connection
        if not connection.is_closed():
            return False
        connection.tell()
        return True

    def is_lost(self) -> bool:
        """Return the same, where that is cheap enough to be asked before each event."""
        return False

    def progress(self) -> object | None:
        """Return a value that changes when the client takes something of what was sent to it.

        It is to be compared with an earlier one, while one ``send`` waits. ``None`` if that can't
        be seen.
        """
        return self.connection.progress()

    def abort(self) -> None:
        """Abort the connection of a client that takes nothing any more.

        Other streams of an HTTP/2 connection may be fine. So only this stream is reset, if the
        server has a way to do so, and the connection is only cut when the server is stopping, and
        if it is stuck.
        """
        if self.aborted:
            return
        connection = self.connection
        if not connection.shared:
            self.aborted = connection.waits() is not False and connection.cut()
            return
        self.aborted = connection.reset()
        if self._stopping.signalled:
            self._connections.cut_if_stuck(connection, 0)
            self.aborted = True

    def bound_unread(self, seconds: float) -> None:
        """Bound how long a server that stops waits for a client to take what it was sent.

        The connection is cut unless the client takes something within so many seconds.
        """
        if self._stopping.signalled:
            self._connections.cut_if_stuck(self.connection, seconds)

    async def abort_is_seen(self, receive: Receive) -> None:
        """Wait a moment until the server has seen that the connection was aborted.

        Otherwise the server reports the incomplete response as an error of the application.
        """
        timeout = SEEN_HTTP1 if self._is_http1() else SEEN_HTTP2
        with anyio.move_on_after(timeout, shield=True):
            try:
                while (await receive())["type"] != "http.disconnect":
                    await anyio.sleep(0.01)  # a middleware may always have an answer, at once
            except Exception:  # noqa: S110  the stream is over in any case
                pass

    def _is_http1(self) -> bool:
        return str(self.scope.get("http_version", "1.1")) < "2"
