"""Streams on objects that look like daphne's and Twisted's: back-pressure, and an orderly end.

The real ones take seconds, and are in tests/servers.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import anyio
import pytest

from sse_asgi import CloseReason, sse_app
from sse_asgi.servers.daphne import SETTLE, Throttle

from .streams import Recorder

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Daphne runs on Twisted's reactor for asyncio."""
    backend: str = request.param
    return backend


class Deferred:
    """What Twisted waits for."""

    def __init__(self) -> None:
        self.fired_at: float | None = None

    def callback(self, result: object) -> None:
        assert self.fired_at is None
        self.fired_at = asyncio.get_running_loop().time()


class Reactor:
    """Twisted's, in an event loop of asyncio's."""

    def __init__(self) -> None:
        self._asyncioEventloop = asyncio.get_running_loop()
        self.requests: dict[Request, dict[str, float]] = {}
        port = SimpleNamespace(factory=SimpleNamespace(server=Server(self.requests)))
        #: A waker, a connection, and a port.
        self.readers: list[Any] = [object(), SimpleNamespace(factory=None), port]
        self.triggers: dict[object, Callable[[], Any]] = {}

    def use_tls(self) -> None:
        """Wrap the factory of the port, twice."""
        port = self.readers[-1]
        for _ in range(2):
            port.factory = SimpleNamespace(wrappedFactory=port.factory)

    def getReaders(self) -> list[Any]:
        return self.readers

    def addSystemEventTrigger(self, phase: str, event: str, function: Callable[[], Any]) -> object:
        assert (phase, event) == ("before", "shutdown")
        trigger = object()
        self.triggers[trigger] = function
        return trigger

    def removeSystemEventTrigger(self, trigger: object) -> None:
        del self.triggers[trigger]

    def stop(self) -> list[Deferred]:
        """Fire the triggers, and return what has to happen before it stops."""
        triggers = list(self.triggers.values())
        self.triggers.clear()
        return [trigger() for trigger in triggers]


class Server:
    """Daphne's: it has all requests in a dict, in the order in which they came."""

    def __init__(self, connections: dict[Request, dict[str, float]]) -> None:
        self.connections = connections


class Request:
    """Daphne's, with what Twisted's has, and the client of it.

    :param http2: its transport is not there, and its channel is a stream of HTTP/2.
    """

    def __init__(self, reactor: Reactor, http2: bool = False) -> None:
        self.clean_headers: list[tuple[bytes, bytes]] = []
        self.client_addr = ["127.0.0.1", 50000 + len(reactor.requests)]
        self.calls: list[str] = []
        self.producer: Any = None
        self.sent: list[Any] = []
        self.error: object = None
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.queue.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        aborts = SimpleNamespace(abortConnection=lambda: self.calls.append("abort"))
        self.transport = None if http2 else aborts
        self.channel: Any = aborts if http2 else SimpleNamespace()
        reactor.requests[self] = {"connected": 0.0}

    def scope(self, **changes: Any) -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1" if self.transport else "2",
            "method": "GET",
            "path": "/",
            "query_string": b"",
            "headers": self.clean_headers,
            "client": self.client_addr,
            "server": ["127.0.0.1", 8000],
            **changes,
        }

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def complete(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is False

    # -- Twisted's -------------------------------------------------------------------------------

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        if self.producer is not None:
            raise ValueError("it has another producer")
        self.calls.append("register")
        self.producer = producer

    def unregisterProducer(self) -> None:
        assert self.channel is not None
        assert self.producer is not None
        self.calls.append("unregister")
        self.producer = None

    def finish(self) -> None:
        assert self.channel is not None, "it has ended"
        assert self.producer is None, "it has a producer"
        self.calls.append("finish")
        self._ended()

    def connectionLost(self, error: object) -> None:
        assert self.channel is not None, "it has ended"
        self.calls.append("lost")
        self.error = error
        self._ended()

    def _ended(self) -> None:
        self.channel = None
        self.queue.put_nowait({"type": "http.disconnect"})

    # -- daphne's --------------------------------------------------------------------------------

    async def send(self, message: Any) -> None:
        """Write, whatever the client does; after the end, nothing."""
        if self.channel is None:
            return
        self.sent.append(message)
        if message.get("more_body") is False:
            self.finish()

    async def receive(self) -> Any:
        return await self.queue.get()

    # -- what the client does --------------------------------------------------------------------

    def read_nothing(self) -> None:
        self.producer.pauseProducing()

    def read_on(self) -> None:
        self.producer.resumeProducing()

    def leave(self) -> None:
        if self.producer is not None:
            self.producer.stopProducing()
        self.connectionLost(ConnectionResetError())

    async def has(self, data: bytes) -> None:
        with anyio.fail_after(10):
            while data not in self.body:
                await asyncio.sleep(0.001)


@pytest.fixture
async def reactor(monkeypatch: pytest.MonkeyPatch) -> Reactor:
    """The reactor, where daphne has imported it."""
    reactor = Reactor()
    defer: Any = ModuleType("twisted.internet.defer")
    defer.Deferred = Deferred
    monkeypatch.setitem(sys.modules, "daphne.server", ModuleType("daphne.server"))
    monkeypatch.setitem(sys.modules, "twisted.internet.reactor", reactor)
    monkeypatch.setitem(sys.modules, "twisted.internet.defer", defer)
    return reactor


def serve(app: Any, request: Request, scope: dict[str, Any] | None = None) -> asyncio.Task[None]:
    """Run an application as daphne does, in a task of its own."""
    scope = request.scope() if scope is None else scope
    return asyncio.ensure_future(app(scope, request.receive, request.send))


async def end_of(*tasks: asyncio.Task[None]) -> None:
    """Wait until streams have ended, as daphne does."""
    _, pending = await asyncio.wait(tasks, timeout=10)
    assert not pending
    for task in tasks:
        await task


async def count() -> AsyncIterator[str]:
    """Count to ten, with a wait after each number."""
    for number in range(10):
        yield str(number)
        await asyncio.sleep(0.001)


#: What the client gets of that.
COUNTED = b"".join(b"data: %d\n\n" % number for number in range(10))


# -- back-pressure ---------------------------------------------------------------------------------


@pytest.mark.parametrize("http2", [False, True])
async def test_a_stream_waits_while_its_client_does_not_read(reactor: Reactor, http2: bool) -> None:
    request = Request(reactor, http2)
    task = serve(sse_app(count), request)
    await request.has(b"data: 3\n\n")
    request.read_nothing()
    sent = len(request.sent)
    await asyncio.sleep(0.05)
    assert len(request.sent) == sent
    request.read_on()
    await end_of(task)
    assert request.body == COUNTED
    assert request.complete
    # A request must have no producer when it ends.
    assert request.calls == ["register", "unregister", "finish"]


async def test_a_stream_waits_if_there_is_no_room_when_it_begins(reactor: Reactor) -> None:
    """Regression 34: a client may have read nothing of what it got for earlier requests, and
    Twisted does not tell that again.
    """
    request = Request(reactor)
    request.channel._waitingForTransport = True
    task = serve(sse_app(count), request)
    await asyncio.sleep(0.05)
    assert request.sent == []
    request.read_on()
    await end_of(task)
    assert request.body == COUNTED


@pytest.mark.parametrize("http2", [False, True])
async def test_a_client_that_reads_nothing_is_cut_off(reactor: Reactor, http2: bool) -> None:
    """What the transport holds for it goes, too; other streams of an HTTP/2 connection stay."""
    request, recorder = Request(reactor, http2), Recorder()
    app = sse_app(count, send_timeout=0.05, on_close=recorder.on_close)
    task = serve(app, request)
    await request.has(b"data: 3\n\n")
    request.read_nothing()
    await end_of(task)
    assert recorder.report.reason is CloseReason.SEND_TIMEOUT
    assert not request.complete
    if http2:
        assert request.calls == ["register", "unregister", "abort", "lost"]
        assert isinstance(request.error, ConnectionAbortedError)
    else:
        assert request.calls == ["register", "unregister", "finish", "abort"]


@pytest.mark.parametrize("reads", [True, False])
async def test_a_client_that_leaves(reactor: Reactor, reads: bool) -> None:
    """Its request is not touched any more."""
    request, recorder = Request(reactor), Recorder()
    task = serve(sse_app(lambda: recorder.source("a"), on_close=recorder.on_close), request)
    await request.has(b"data: a\n\n")
    if not reads:
        request.read_nothing()
    request.leave()
    await end_of(task)
    assert recorder.closed
    assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED
    assert request.calls == ["register", "lost"]


def throttled(request: Request) -> Throttle:
    throttle = Throttle(request.send)
    throttle.register(request)
    return throttle


@pytest.mark.parametrize("end", ["stopProducing", "release"])
async def test_nobody_waits_for_room_when_there_is_nobody_to_read(
    reactor: Reactor, end: str
) -> None:
    """Whoever waits in ``send`` then goes on, and finds that the connection is gone."""
    request = Request(reactor)
    throttle = throttled(request)
    throttle.pauseProducing()
    sending = asyncio.ensure_future(throttle.send({"type": "http.response.start"}))
    await asyncio.sleep(0.01)
    assert request.sent == []
    getattr(throttle, end)()
    await end_of(sending)
    assert len(request.sent) == 1
    throttle.release()
    assert request.calls == ["register", "unregister"]  # once
    assert not throttle.abort()  # it has nothing to do with the request any more
    assert throttled(request).abort()
    assert request.channel is None
    assert not throttle.abort()


async def test_a_request_that_has_another_producer_is_left_with_it(reactor: Reactor) -> None:
    request = Request(reactor)
    request.registerProducer(SimpleNamespace(), True)
    other = request.producer
    task = serve(sse_app(count), request)
    await request.has(b"data: 3\n\n")
    assert request.producer is other
    request.unregisterProducer()
    await end_of(task)
    assert request.body == COUNTED


@pytest.mark.parametrize("changed", ["nothing", "headers", "client", "TLS", "a proxy's client"])
async def test_the_request_of_a_stream_is_found(reactor: Reactor, changed: str) -> None:
    """Among others that look alike, by one of two lists that are its own."""
    alike = [Request(reactor) for _ in range(3)]
    request = alike[1]
    if changed == "TLS":
        reactor.use_tls()
    scope = request.scope()
    if changed == "headers":
        scope["headers"] = list(scope["headers"])
    elif changed == "client":
        scope["client"] = list(scope["client"])
    elif changed == "a proxy's client":
        request.client_addr = scope["client"] = None  # type: ignore[assignment]
    await end_of(serve(sse_app(count), request, scope))
    assert [one.calls for one in alike] == [[], ["register", "unregister", "finish"], []]


async def test_a_request_that_is_not_found_is_served_without_a_throttle(reactor: Reactor) -> None:
    """A middleware has put lists of its own in the place of both."""
    request, none = Request(reactor), Request(reactor)
    none.client_addr = None  # type: ignore[assignment]
    scope = request.scope(headers=[], client=None)
    await end_of(serve(sse_app(count), request, scope))
    assert request.body == COUNTED
    assert request.calls == ["finish"]
    assert none.calls == []


@pytest.mark.parametrize("other", ["server", "loop"])
async def test_another_server_is_not_taken_for_daphne(reactor: Reactor, other: str) -> None:
    """It says by which version of ASGI it speaks; or the reactor runs in another event loop."""
    request = Request(reactor)
    scope = request.scope()
    if other == "server":
        scope["asgi"] = {"version": "3.0", "spec_version": "2.3"}
    else:
        reactor._asyncioEventloop = object()  # type: ignore[assignment]
    task = serve(sse_app(count), request, scope)
    await request.has(b"data: 3\n\n")
    assert request.calls == []
    assert reactor.triggers == {}
    await end_of(task)


async def test_a_broken_response_is_ended(reactor: Reactor) -> None:
    """Daphne leaves its client waiting when the application raises an exception."""

    async def source() -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(0.001)
        raise LookupError

    request = Request(reactor)
    with pytest.raises(LookupError):
        await end_of(serve(sse_app(source), request))
    assert request.body == b"data: a\n\n"
    assert request.complete


# -- the end ---------------------------------------------------------------------------------------


async def test_daphne_stops_when_the_last_stream_has_ended(reactor: Reactor) -> None:
    quick, slow, late = (Request(reactor) for _ in range(3))
    recorder, may_end = Recorder(), anyio.Event()

    async def source() -> AsyncIterator[str]:
        try:
            yield "a"
            await anyio.sleep_forever()
        finally:
            await may_end.wait()

    app = sse_app(lambda: recorder.source("a"), on_close=recorder.on_close)
    quick_task = serve(app, quick)
    slow_task = serve(sse_app(source, on_close=recorder.on_close), slow)
    for request in (quick, slow):
        await request.has(b"data: a\n\n")
    (ended,) = reactor.stop()
    await end_of(quick_task, serve(app, late))
    await asyncio.sleep(1.2 * SETTLE)
    assert ended.fired_at is None
    begin = asyncio.get_running_loop().time()
    may_end.set()
    await end_of(slow_task)
    with anyio.fail_after(10):
        while ended.fired_at is None:
            await asyncio.sleep(0.001)
    # What was written last leaves a connection in a later turn.
    assert ended.fired_at - begin > 0.9 * SETTLE
    assert all(request.complete for request in (quick, slow, late))
    assert {report.reason for report in recorder.reports} == {CloseReason.SHUTDOWN}


async def test_a_stream_that_ends_leaves_no_trigger(reactor: Reactor) -> None:
    for _ in range(2):
        requests = [Request(reactor) for _ in range(2)]
        tasks = [serve(sse_app(count), request) for request in requests]
        await requests[0].has(b"data: 1\n\n")
        assert len(reactor.triggers) == 1
        await end_of(*tasks)
        assert reactor.triggers == {}
    assert reactor.stop() == []


@pytest.fixture
def signals() -> Iterator[list[int]]:
    """The signals that Twisted's handler gets."""
    received: list[int] = []
    found = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    yield received
    signal.signal(signal.SIGTERM, found)


@pytest.mark.parametrize("first", ["cancel", "stop"])
async def test_a_signal_then_daphne_cancels_its_applications(
    reactor: Reactor, signals: list[int], first: str
) -> None:
    """They end in order, and none of them as one that was cancelled: it would wait no longer."""
    request, recorder = Request(reactor), Recorder()
    app = sse_app(lambda: recorder.source("a", cleanup=0.02), on_close=recorder.on_close)
    task = serve(app, request)
    await request.has(b"data: a\n\n")
    signal.raise_signal(signal.SIGTERM)
    await asyncio.sleep(0.02)
    assert signals == [signal.SIGTERM]
    assert not recorder.cleanup_began  # when daphne cancels it, which it does at once
    steps: list[Callable[[], object]] = [task.cancel, reactor.stop]
    for step in steps if first == "cancel" else reversed(steps):
        step()
    await end_of(task)
    assert not task.cancelled()
    assert recorder.closed
    assert request.complete
    assert recorder.report.reason in (CloseReason.SHUTDOWN, CloseReason.CANCELLED)


async def test_an_application_that_is_cancelled_for_another_reason(reactor: Reactor) -> None:
    """Daphne does so when a client has left."""
    request, recorder = Request(reactor), Recorder()
    task = serve(sse_app(lambda: recorder.source("a"), on_close=recorder.on_close), request)
    await request.has(b"data: a\n\n")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await end_of(task)
    assert recorder.closed
    assert reactor.triggers == {}
