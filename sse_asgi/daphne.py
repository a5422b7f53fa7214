"""Back-pressure on daphne, whose ``send`` never waits.

daphne writes all that it is given to Twisted's transport, which buffers it without a bound. But the
transport tells a producer that has registered with a request when its buffer is full, and when it
is empty again. So the request that a stream answers is looked for in the server. Where it is not
found, in some later version say, ``send`` does not wait, and that is all.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .loops import current_loop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .types import Message, Scope, Send

__all__ = ["Throttle", "throttle"]


class Throttle:
    """A ``send`` that waits while the client does not read.

    To Twisted this is an ``IPushProducer``; it asks for no more than the methods.

    :param request: daphne's, on an open connection.
    :param send: what leads there, in the end.
    """

    def __init__(self, request: Any, send: Send) -> None:
        self._request = request
        self._send = send
        self._room = asyncio.Event()
        self._room.set()
        request.registerProducer(self, True)

    async def send(self, message: Message) -> None:
        """Send, when there is room for more."""
        await self._room.wait()
        if message.get("more_body") is False:
            self.release()  # a request must have no producer when it ends
        await self._send(message)

    def release(self) -> None:
        """Have nothing to do with the request any more; nobody waits from now on."""
        request, self._request = self._request, None
        if request is not None and _is_open(request):
            request.unregisterProducer()
        self._room.set()

    def abort(self) -> bool:
        """Break the response off, and drop what the client has not taken of it.

        :returns: whether it had not ended before.
        """
        request = self._request
        self.release()
        if request is None or not _is_open(request):
            return False
        if (transport := request.transport) is not None:
            # To daphne an exception of the application's would be an error if it were still open.
            request.finish()
            transport.abortConnection()
        else:  # HTTP/2: the stream is reset, and others of the connection go on
            request.channel.abortConnection()
            if _is_open(request):
                request.connectionLost(ConnectionAbortedError())
        return True

    # -- what the transport calls ----------------------------------------------------------------

    def pauseProducing(self) -> None:
        """Its buffer is full."""
        self._room.clear()

    def resumeProducing(self) -> None:
        """Its buffer is empty."""
        self._room.set()

    def stopProducing(self) -> None:
        """The connection is lost; ``receive()`` is about to say so."""
        self._room.set()


def throttle(scope: Scope, send: Send) -> Throttle | None:
    """Have a ``send`` of daphne's wait, whatever middleware has wrapped it.

    :returns: ``None`` where it can't be done.
    """
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    if getattr(reactor, "_asyncioEventloop", None) is not current_loop():
        return None
    for request in _requests(reactor):
        if _is_answered(request, scope):
            if _is_open(request):
                with suppress(RuntimeError, ValueError):  # it has another producer
                    return Throttle(request, send)
            break
    return None


def _requests(reactor: Any) -> Iterator[Any]:
    """All requests of daphne's servers in the event loop, the newest first."""
    for reader in reactor.getReaders():
        factory = getattr(reader, "factory", None)  # of a port that is listened on
        while (wrapped := getattr(factory, "wrappedFactory", None)) is not None:  # TLS
            factory = wrapped
        server = getattr(factory, "server", None)
        yield from reversed(tuple(getattr(server, "connections", ())))


def _is_answered(request: Any, scope: Scope) -> bool:
    # Both are lists, and of this request alone. A middleware may have put another list in the
    # place of one, but hardly of both.
    client = scope.get("client")
    return scope["headers"] is getattr(request, "clean_headers", None) or (
        client is not None and client is getattr(request, "client_addr", None)
    )


def _is_open(request: Any) -> bool:
    """Whether the response has not ended, and the connection not been lost."""
    return getattr(request, "channel", None) is not None
