"""What daphne needs to be a server like others: back-pressure, and an orderly end.

daphne writes all that it is given to Twisted's transport, which buffers it without a bound. But the
transport tells a producer that has registered with a request when its buffer is full, and when it
is empty again. So the request that a stream answers is looked for in the server. Where it is not
found, in some later version say, ``send`` does not wait, and that is all.

When it is told to stop, daphne cancels its applications and waits for them; but it fails at that,
and breaks off whatever there is, where a client has sent half of a request. So Twisted is asked to
wait for streams, by the trigger that it has for that.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from anyio.lowlevel import RunVar

from .runtime import current, of_this_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .types import Message, Scope, Send

__all__ = ["Throttle", "hold", "throttle"]

#: What was written to a connection leaves it in a later turn of the event loop, with HTTP/2 in the
#: one after it: so many seconds pass until the last stream has ended for good.
LAST_WORDS = 0.05


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
    reactor = _reactor()
    for request in _requests(reactor) if reactor is not None else ():
        if _is_answered(request, scope):
            if _is_open(request):
                with suppress(RuntimeError, ValueError):  # it has another producer
                    return Throttle(request, send)
            break
    return None


class _Hold:
    """Keeps Twisted's reactor from stopping before the streams of its event loop have ended."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._runtime = current()
        self._streams: set[Callable[[], object]] = set()
        self._trigger: Any = None
        self._ended: Any = None  # a Deferred, when the reactor is stopping

    def add(self, shut_down: Callable[[], object]) -> Callable[[], object]:
        if self._ended is not None:
            shut_down()
            return lambda: None  # it is not waited for: there may always be more
        self._streams.add(shut_down)
        if self._trigger is None:
            self._trigger = self._reactor.addSystemEventTrigger("before", "shutdown", self._stop)
        return partial(self._remove, shut_down)

    def _remove(self, shut_down: Callable[[], object]) -> None:
        self._streams.remove(shut_down)
        if self._streams:
            return
        if self._ended is not None:
            self._runtime.after(LAST_WORDS, partial(self._ended.callback, None))
        else:
            self._reactor.removeSystemEventTrigger(self._trigger)
            self._trigger = None

    def _stop(self) -> Any:
        defer: Any = sys.modules["twisted.internet.defer"]
        self._ended = defer.Deferred()
        for shut_down in tuple(self._streams):
            shut_down()
        return self._ended


_of_loop: RunVar[_Hold] = RunVar("sse_asgi.daphne")


def hold(shut_down: Callable[[], object]) -> Callable[[], object] | None:
    """Have daphne not stop before what is returned is called.

    :param shut_down: called when daphne is stopping, and has cancelled its applications.
    :returns: ``None`` where that can't be done.
    """
    reactor = _reactor()
    if reactor is None:
        return None
    return of_this_loop(_of_loop, partial(_Hold, reactor)).add(shut_down)


def _reactor() -> Any:
    """Twisted's reactor, if it runs in this event loop."""
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    return reactor if current().is_of(getattr(reactor, "_asyncioEventloop", None)) else None


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
