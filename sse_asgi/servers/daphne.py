"""What daphne needs to be a server like others: back-pressure, and an orderly end.

daphne writes all that it is given to the transport of Twisted, which buffers it without a bound.
The transport tells a producer that has registered with a request when its buffer is full, and when
it is empty again. So a stream looks for its request in the server. If it does not find it, in a
later version of daphne for example, ``send`` does not wait, and nothing else changes.

When daphne is told to stop, it cancels its applications and waits for them. If some client has sent
half of a request, daphne does not wait, and aborts all connections. So the stream makes Twisted
wait, by a shutdown trigger.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ..runtime import current
from .base import Server
from .connection import Connection, SocketConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import ClassVar

    from ..types import Message, Send

__all__ = ["Daphne"]

#: How long, in seconds, Twisted waits after the last stream has ended: what was written to a
#: connection leaves it in the next iteration of the event loop, on HTTP/2 in the one after that.
SETTLE = 0.05


class Daphne(Server):
    """See :class:`~sse_asgi.servers.base.Server`."""

    __slots__ = ("_attached", "_let_stop", "_throttle")

    hides_broken_responses: ClassVar[bool] = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._attached = False
        self._let_stop: Callable[[], object] | None = None
        self._throttle = Throttle(self.send)
        self.send: Send = self._throttle.send

    @property
    def cancels_when_stopping(self) -> bool:
        """Whether daphne runs here. If it was only imported, nobody cancels anything."""
        return self._attached

    def attach(self, shut_down: Callable[[], object], lost: Callable[[], object]) -> None:
        """Make ``send`` wait for the client, and make Twisted wait for the stream."""
        super().attach(shut_down, lost)
        if (reactor := _reactor()) is None:
            return
        for request in _requests(reactor):
            if _answers(request, self.scope):
                self._throttle.register(request)
                break
        self._let_stop = current().own(_Hold).add(shut_down)
        self._attached = True

    def detach(self) -> None:
        """Let Twisted stop."""
        super().detach()
        if self._let_stop is not None:
            self._let_stop()
            self._let_stop = None

    def release(self) -> None:
        """Unregister the producer: a request that has one can't end."""
        self._throttle.release()

    def abort(self) -> None:
        """Abort the response. On HTTP/2 only its stream is reset."""
        if not self.aborted:
            self.aborted: bool = self._throttle.abort()

    def _find_connection(self) -> Connection | None:
        return _connection(self._throttle.request)


class Throttle:
    """A ``send`` that waits while the client does not read.

    To Twisted this is an ``IPushProducer``, which needs no more than these methods.

    :param send: sends a message, whatever middleware is in between.
    """

    __slots__ = ("_room", "_send", "request")

    def __init__(self, send: Send) -> None:
        self._send = send
        #: The request that tells this object when its buffer is full, until it was released.
        self.request: Any = None
        self._room = asyncio.Event()
        self._room.set()

    def register(self, request: Any) -> None:
        """Ask Twisted to tell when the buffer of a request of daphne's is full."""
        if _is_open(request):
            with suppress(RuntimeError, ValueError):  # it has another producer
                request.registerProducer(self, True)
                self.request = request
                # If it is full already, by responses to earlier requests, that was told before.
                if getattr(request.channel, "_waitingForTransport", False):
                    self.pauseProducing()

    async def send(self, message: Message) -> None:
        """Send a message when there is room for more."""
        await self._room.wait()
        if message.get("more_body") is False:
            self.release()  # a request must have no producer when it ends
        await self._send(message)

    def release(self) -> None:
        """Unregister from the request. Nobody waits from now on."""
        request, self.request = self.request, None
        if request is not None and _is_open(request):
            request.unregisterProducer()
        self._room.set()

    def abort(self) -> bool:
        """Abort the response, and drop what the client has not taken of it.

        :returns: whether the response had not ended before.
        """
        request = self.request
        self.release()
        if request is None or not _is_open(request):
            return False
        if (transport := request.transport) is not None:
            # First: daphne logs an exception of the application as an error while this is open.
            request.finish()
            transport.abortConnection()
        else:  # HTTP/2: the stream is reset, and others of the connection go on
            request.channel.abortConnection()
            if _is_open(request):
                request.connectionLost(ConnectionAbortedError())
        return True

    # -- what the transport calls ----------------------------------------------------------------

    def pauseProducing(self) -> None:
        """Make ``send`` wait: the buffer is full."""
        self._room.clear()

    def resumeProducing(self) -> None:
        """Let ``send`` go on: the buffer is empty."""
        self._room.set()

    def stopProducing(self) -> None:
        """Let ``send`` go on: the connection is lost. ``receive()`` will report it."""
        self._room.set()


class _HTTP1(SocketConnection):
    """A connection of HTTP/1.1.

    Twisted stops reading when a client has sent 16 KiB of further requests.

    :param tcp: a transport of Twisted's for TCP.
    """

    __slots__ = ("_tcp",)

    def __init__(self, tcp: Any) -> None:
        super().__init__(tcp.getHandle())
        self._tcp = tcp

    def tell(self) -> None:
        """Have Twisted close the connection, which it does not read from."""
        self._tcp.abortConnection()

    def taken(self) -> object | None:
        """Return what the system tells, or else how far the buffer of Twisted was sent."""
        acked = super().taken()
        return (len(self._tcp.dataBuffer), self._tcp.offset) if acked is None else acked


class _HTTP2(Connection):
    """A stream of HTTP/2. Only what daphne needs is here: it does not forget to tell.

    :param stream: the ``H2Stream`` of Twisted's.
    """

    __slots__ = ("_of_all", "_stream", "_tcp")

    shared: ClassVar[bool] = True

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._of_all = stream._conn
        self._tcp = _HTTP1(_tcp(self._of_all.transport))

    def progress(self) -> object | None:
        """Return how much the client allows to send, and if it allows some, what TCP tells."""
        number = self._stream.streamID
        try:
            left = self._of_all.remainingOutboundWindow(number)
            queue = self._of_all._outboundStreamQueues[number]
        except Exception:  # the stream is over
            return None
        queued = sum(len(data) for data in queue if isinstance(data, bytes))
        return left, self._tcp.taken() if left + queued > 0 or not queued else None

    def taken(self) -> object | None:
        return self._tcp.taken()

    def waits(self) -> bool | None:
        return self._tcp.waits()

    def cut(self) -> bool:
        return self._tcp.cut()


class _Hold:
    """Keep the reactor of Twisted from stopping before the streams of its event loop have ended."""

    def __init__(self) -> None:
        self._reactor = _reactor()
        self._runtime = current()
        self._streams: set[Callable[[], object]] = set()
        self._trigger: Any = None
        self._ended: Any = None  # a Deferred, when the reactor is stopping

    def add(self, shut_down: Callable[[], object]) -> Callable[[], object]:
        if self._ended is not None:
            shut_down()
            return lambda: None  # Twisted does not wait for it: there may always be more
        self._streams.add(shut_down)
        if self._trigger is None:
            self._trigger = self._reactor.addSystemEventTrigger("before", "shutdown", self._stop)
        return partial(self._remove, shut_down)

    def _remove(self, shut_down: Callable[[], object]) -> None:
        self._streams.remove(shut_down)
        if self._streams:
            return
        if self._ended is not None:
            self._runtime.after(SETTLE, partial(self._ended.callback, None))
        else:
            self._reactor.removeSystemEventTrigger(self._trigger)
            self._trigger = None

    def _stop(self) -> Any:
        defer: Any = sys.modules["twisted.internet.defer"]
        self._ended = defer.Deferred()
        for shut_down in tuple(self._streams):
            shut_down()
        return self._ended


def _reactor() -> Any:
    """Return the reactor of Twisted, if it runs in this event loop."""
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    return reactor if current().is_of(getattr(reactor, "_asyncioEventloop", None)) else None


def _requests(reactor: Any) -> Iterator[Any]:
    """Return all requests of daphne's servers in the event loop, the newest first."""
    for reader in reactor.getReaders():
        factory = getattr(reader, "factory", None)  # of a port that is listened on
        while (wrapped := getattr(factory, "wrappedFactory", None)) is not None:  # TLS
            factory = wrapped
        server = getattr(factory, "server", None)
        yield from reversed(tuple(getattr(server, "connections", ())))


def _answers(request: Any, scope: Any) -> bool:
    """Return whether a request of daphne's is the one that a scope was made for."""
    # Both are lists, and of this request alone. A middleware may have put another list in the
    # place of one, but hardly of both.
    client = scope.get("client")
    return scope["headers"] is getattr(request, "clean_headers", None) or (
        client is not None and client is getattr(request, "client_addr", None)
    )


def _is_open(request: Any) -> bool:
    """Return whether the response has not ended, and the connection not been lost."""
    return getattr(request, "channel", None) is not None


def _connection(request: Any) -> Connection:
    """Return the connection of a request of daphne's, or of none."""
    if request is None or not _is_open(request):
        return Connection()
    try:
        if request.transport is None:
            return _HTTP2(request.channel)
        return _HTTP1(_tcp(request.transport))
    except AttributeError:  # a UNIX socket, or a later version has it elsewhere
        return Connection()


def _tcp(transport: Any) -> Any:
    """Return the transport below TLS."""
    while (below := getattr(transport, "transport", None)) is not None:
        transport = below
    return transport
