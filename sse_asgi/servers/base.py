"""A server, as a stream sees it: what ASGI promises, and where servers differ from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar, Protocol

    from ..types import Receive, Scope, Send
    from .sockets import Connections

    class Stopping(Protocol):
        """An object that knows whether the server was told to stop."""

        signalled: bool


__all__ = ["Server"]

#: How long, in seconds, to wait until the server sees that a connection was aborted. HTTP/1.1 takes
#: one iteration of the event loop. With HTTP/2 it takes a moment to see whether the connection is
#: stuck.
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

    __slots__ = ("_connections", "_scope", "_stopping", "aborted", "send")

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
        self._scope = scope
        self._stopping = stopping
        self._connections = connections
        #: What sends an ASGI message.
        self.send: Send = send
        #: Whether the connection was aborted, as far as that is known.
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
        """

    def detach(self) -> None:
        """Undo :meth:`attach`: the stream has ended, and the server may stop."""

    def release(self) -> None:
        """Release the response: nothing is sent after this."""

    def is_gone(self) -> bool:
        """Return whether the connection is closed, as far as the server's own objects tell."""
        return False

    def progress(self) -> object | None:
        """Return a value that changes whenever the client takes something; ``None``: unknown."""
        return None

    # -- the connection --------------------------------------------------------------------------

    def abort(self) -> None:
        """Abort the connection of a client that takes nothing any more.

        Other streams of an HTTP/2 connection may be fine, so that is only aborted when the server
        is stopping, and if it is stuck.
        """
        if self.aborted:
            return
        if self._is_http1():
            self.aborted = self._connections.abort(self._scope)
        elif self._stopping.signalled:
            self._connections.abort_if_stuck(self._scope, 0)
            self.aborted = True

    def abort_if_stuck(self, seconds: float) -> None:
        """Abort the connection unless the client takes something within so many seconds."""
        self._connections.abort_if_stuck(self._scope, seconds)

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
        return str(self._scope.get("http_version", "1.1")) < "2"
