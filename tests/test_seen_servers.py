"""Servers that stop without a signal are seen to, in objects that look like theirs.

The real ones take seconds, and are in tests/servers.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from sse_asgi import CloseReason, Shutdown, servers, sse_app
from sse_asgi.runtime import of_task
from sse_asgi.servers import connections
from sse_asgi.servers.base import Server
from sse_asgi.testing import Connection, connect
from sse_asgi.types import Message, Scope

from .streams import Recorder, Stopping, http_scope, never, on_mock_clock

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are looked for only where they were imported."""
    for name in ("uvicorn.server", "hypercorn"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))


def of_module(name: str, function: Callable[..., Awaitable[None]]) -> Callable[..., Any]:
    """Make a function that seems to stand in another module."""
    assert isinstance(function, FunctionType)
    return FunctionType(
        function.__code__,
        {**function.__globals__, "__name__": name},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


async def _serve(self: object) -> None:
    """What a server of uvicorn's waits in, in its module."""
    await anyio.sleep_forever()


async def worker_serve(app: object, context: object) -> None:
    """What a worker of hypercorn's waits in."""
    await anyio.sleep_forever()


class Uvicorn:
    """A server of uvicorn's."""

    def __init__(self, *serving: bool) -> None:
        self.should_exit = False
        self.servers = [SimpleNamespace(is_serving=partial(bool, one)) for one in serving]

    def run(self) -> Callable[[], Any]:
        serve = of_module("uvicorn.server", _serve)
        return lambda: serve(self)

    def stop(self) -> None:
        self.should_exit = True


class UvicornAtItsLimit(Uvicorn):
    """One that has had as many requests as it takes: it only closes its sockets."""

    def __init__(self) -> None:
        super().__init__(True, False)

    def stop(self) -> None:
        for socket in self.servers:
            socket.is_serving = partial(bool, False)


class Hypercorn:
    """A worker of hypercorn's."""

    def __init__(self, loop: str = "asyncio") -> None:
        self.looked = 0
        self.stopping = False
        self.loop = loop
        self.context: Any = SimpleNamespace(terminated=SimpleNamespace(is_set=self.is_set))

    def is_set(self) -> bool:
        self.looked += 1
        return self.stopping

    def run(self) -> Callable[[], Any]:
        serve = of_module(f"hypercorn.{self.loop}.run", worker_serve)
        return lambda: serve(None, self.context)

    def stop(self) -> None:
        self.stopping = True


class HypercornOnTrio(Hypercorn):
    def __init__(self) -> None:
        super().__init__("trio")


@asynccontextmanager
async def running(*servers: Any) -> AsyncIterator[None]:
    """Run servers, each of them somewhere within what a task awaits."""

    async def main(run: Callable[[], Any]) -> None:
        await run()

    async with anyio.create_task_group() as tasks:
        for server in servers:
            tasks.start_soon(main, server.run())
        await anyio.wait_all_tasks_blocked()
        yield
        tasks.cancel_scope.cancel()


def idle(recorder: Recorder | None = None, **options: Any) -> Any:
    """Make an application whose streams have one event, and wait."""
    recorder = recorder or Recorder()
    return sse_app(lambda: recorder.source("a"), on_close=recorder.on_close, ping=None, **options)


async def ends(stream: Connection) -> None:
    with anyio.fail_after(10):
        assert [event async for event in stream] == []
    assert stream.complete


async def goes_on(stream: Connection) -> None:
    """Wait for longer than it takes to see that a server is stopping."""
    with anyio.move_on_after(0.25) as waited:
        await stream.receive()
    assert waited.cancelled_caught


@pytest.mark.parametrize("make", [Uvicorn, UvicornAtItsLimit, Hypercorn, HypercornOnTrio])
async def test_a_server_that_stops_ends_its_streams(make: Callable[[], Any]) -> None:
    server, recorder = make(), Recorder()
    app = idle(recorder)
    async with running(server), connect(app) as first, connect(app) as second:
        for stream in (first, second):
            await stream.receive()
        await goes_on(first)
        server.stop()
        for stream in (first, second):
            await ends(stream)
        async with connect(app) as late:
            await ends(late)
    assert {report.reason for report in recorder.reports} == {CloseReason.SHUTDOWN}


async def test_streams_end_when_the_last_of_several_servers_stops() -> None:
    servers: list[Any] = [Uvicorn(), Hypercorn(), UvicornAtItsLimit()]
    async with running(*servers), connect(idle()) as stream:
        await stream.receive()
        for server in servers:
            await goes_on(stream)
            server.stop()
        await ends(stream)


async def test_the_next_server_has_streams_again() -> None:
    """One has stopped, and another runs in the same event loop."""
    app = idle()
    for make in (Uvicorn, Hypercorn, Uvicorn):
        server = make()
        async with running(server), connect(app) as stream:
            assert (await stream.receive()).data == "a"
            server.stop()
            await ends(stream)


async def test_a_server_is_known_by_its_module() -> None:
    """A function of somebody else's may have the same name, and an object the same attributes."""

    class Namesake(Uvicorn):
        def run(self) -> Callable[[], Any]:
            serve = of_module("somebody.server", _serve)
            return lambda: serve(self)

    class Other(Hypercorn):
        def run(self) -> Callable[[], Any]:
            serve = of_module("somebody.run", worker_serve)
            return lambda: serve(None, self.context)

    servers: list[Any] = [Namesake(), Other()]
    for server in servers:
        server.stop()
    async with running(*servers), connect(idle()) as stream:
        assert (await stream.receive()).data == "a"
        await goes_on(stream)


async def test_a_version_that_has_it_elsewhere_is_not_seen_to_stop() -> None:
    """And that is all."""
    uvicorn: Any = Uvicorn()
    del uvicorn.should_exit, uvicorn.servers
    hypercorn = Hypercorn()
    hypercorn.context = SimpleNamespace()
    async with running(uvicorn, hypercorn), connect(idle()) as stream:
        assert (await stream.receive()).data == "a"
        await goes_on(stream)


async def test_a_server_that_was_not_imported_is_not_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("uvicorn.server", "hypercorn"):
        monkeypatch.delitem(sys.modules, name)
    server = Uvicorn()
    server.stop()
    async with running(server), connect(idle()) as stream:
        assert (await stream.receive()).data == "a"


@on_mock_clock
async def test_a_server_that_stops_is_seen_to_within_a_tenth_of_a_second() -> None:
    server, recorder = HypercornOnTrio(), Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "hypercorn", ModuleType("hypercorn"))
        async with running(server):
            async with connect(idle(recorder)) as stream:
                await stream.receive()
                await trio.sleep(100)
                server.stop()
                await ends(stream)
            assert recorder.report.duration == pytest.approx(100.05, abs=0.06)
            # It was looked at ten times a second, and is no more when there are no streams.
            assert server.looked == pytest.approx(1000, abs=5)
            looked = server.looked
            await trio.sleep(100)
            assert server.looked == looked


@on_mock_clock
async def test_a_server_that_starts_after_the_first_stream_is_looked_for_again() -> None:
    """Not for every stream: that takes a look at all tasks."""
    server = HypercornOnTrio()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "hypercorn", ModuleType("hypercorn"))
        async with connect(idle()) as first:
            await first.receive()
            async with running(server):
                await trio.sleep(0.5)
                async with connect(idle()):
                    pass
                assert server.looked == 0
                await trio.sleep(0.6)
                async with connect(idle()):
                    pass
                assert server.looked > 0
                server.stop()
                await ends(first)


# -- hypercorn and HTTP/2 --------------------------------------------------------------------------

#: Of all servers only hypercorn offers HTTP/2 push.
HYPERCORN = {"http_version": "2", "extensions": {"http.response.push": {}}}

SCOPES = [
    (HYPERCORN, True),
    ({**HYPERCORN, "http_version": "3"}, True),
    ({**HYPERCORN, "http_version": "1.1"}, False),
    ({**HYPERCORN, "extensions": {"http.response.trailers": {}}}, False),
    ({**HYPERCORN, "extensions": None}, False),
    ({"http_version": "2"}, False),
]


async def messages_of(app: Any, scope: dict[str, Any], then: Callable[[], object]) -> list[Any]:
    """Run a stream, and do something when it has started."""
    messages: list[Any] = []
    started = anyio.Event()

    async def send(message: Any) -> None:
        messages.append(message)
        if message["type"] == "http.response.body":
            started.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app, http_scope(**scope), never, send)
        await started.wait()
        then()
    return messages


@pytest.mark.parametrize(("scope", "quirk"), SCOPES)
@pytest.mark.parametrize("retry", [None, 1000])
async def test_hypercorn_waits_for_no_empty_end_when_it_stops(
    scope: dict[str, Any], quirk: bool, retry: int | None
) -> None:
    """With HTTP/2 there is a ping in the last message then, if nothing else is."""
    shutdown = Shutdown()
    messages = await messages_of(idle(shutdown=shutdown, retry=retry), scope, shutdown.drain)
    last = messages[-1]
    assert last["more_body"] is False
    if retry is None:
        assert last["body"] == (b":\n\n" if quirk else b"")
    else:
        assert last["body"].startswith(b"retry: ")


async def test_an_end_that_is_no_shutdown_is_empty() -> None:
    ended = anyio.Event()

    async def source() -> AsyncIterator[str]:
        yield "a"
        await ended.wait()

    messages = await messages_of(sse_app(source), HYPERCORN, ended.set)
    assert messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


@pytest.mark.parametrize(("scope", "quirk"), SCOPES)
@pytest.mark.parametrize("start", ["started", "deferred"])
async def test_a_broken_response_is_ended_where_the_client_would_wait(
    scope: dict[str, Any], quirk: bool, start: str
) -> None:
    """Hypercorn does not tell a client of HTTP/2 that the application has raised an exception."""
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def source() -> AsyncIterator[str]:
        if start == "started":
            yield "a"
        await anyio.sleep(0.001)
        raise LookupError
        yield "never"

    app = sse_app(source, defer_start=start == "deferred")
    with pytest.raises(LookupError):
        await app(http_scope(**scope), never, send)
    if start == "deferred":
        assert messages == []  # hypercorn can still answer 500
    else:
        assert (messages[-1]["more_body"] is False) is quirk
        assert b"".join(message.get("body", b"") for message in messages) == b"data: a\n\n"


@pytest.mark.parametrize(("scope", "quirk"), SCOPES)
async def test_a_response_to_a_client_that_takes_nothing_is_ended_there_too(
    scope: dict[str, Any], quirk: bool
) -> None:
    recorder = Recorder()
    ended: list[bool] = []

    async def send(message: Any) -> None:
        if message.get("body"):
            await anyio.sleep_forever()
        if message["type"] == "http.response.body":
            ended.append(not message["more_body"])

    app = sse_app(lambda: recorder.source("a"), send_timeout=0.02, on_close=recorder.on_close)
    await app(http_scope(**scope), never, send)
    assert recorder.report.reason is CloseReason.SEND_TIMEOUT
    assert (ended[-1:] == [True]) is quirk


# Which connection is a stream's own, though middlewares are in between, and whether it is closed.


class Cycle:
    """A request of uvicorn's."""

    def __init__(self, scope: Scope | None = None) -> None:
        self.scope: Any = http_scope(state={}) if scope is None else scope
        self.closing = False
        self.disconnected = False
        self.transport: Any = SimpleNamespace(
            is_closing=lambda: self.closing,
            get_write_buffer_size=lambda: 7,
            get_extra_info=lambda name: None,
            abort=self.abort,
        )
        self.flow = SimpleNamespace(read_paused=False)
        self.message_event = anyio.Event()
        self.aborts = 0

    def abort(self) -> None:
        self.aborts += 1

    async def send(self, message: Message) -> None: ...


class CycleThatIsLost(Cycle):
    """Its connection is lost when six messages were written."""

    written = 0

    async def send(self, message: Message) -> None:
        self.written += 1
        self.closing = self.written >= 6


Cycle.__module__ = CycleThatIsLost.__module__ = "uvicorn.protocols.http.h11_impl"


async def run_asgi(self: object) -> None:
    """What a task of uvicorn's waits in."""
    await anyio.sleep_forever()


@asynccontextmanager
async def requests(*cycles: Cycle) -> AsyncIterator[None]:
    """Have uvicorn run requests, each in a task of asyncio's."""
    run = of_module("uvicorn.protocols.http.h11_impl", run_asgi)
    tasks = [asyncio.create_task(run(cycle)) for cycle in cycles]
    await asyncio.sleep(0)
    yield
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def wrapped(scope: Scope) -> Server:
    """Return what is seen through a middleware with another ``send``."""

    async def send(message: Message) -> None: ...

    return servers.recognise(scope, send, of_task(), Stopping(signalled=False))


on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@on_asyncio
@pytest.mark.parametrize("changed", ["nothing", "headers", "state"])
async def test_a_copy_of_the_scope_leads_to_the_connection(changed: str) -> None:
    own, other = Cycle(), Cycle()
    scope = dict(own.scope)
    if changed != "nothing":
        scope[changed] = type(scope[changed])(scope[changed])
    async with requests(other, own):
        server = wrapped(scope)
        assert server.progress() is not None
        server.abort()
        assert server.aborted
    assert (own.aborts, other.aborts) == (1, 0)
    # Regression 34: or uvicorn would log that the response is incomplete, if it is not the last of
    # its connection.
    assert (own.disconnected, other.disconnected) == (True, False)


@on_asyncio
async def test_nothing_is_written_to_a_transport_that_is_closing() -> None:
    """Regression 31: asyncio would warn of it, until the connection is found closed."""
    cycle = CycleThatIsLost()
    events = 0

    async def source() -> AsyncIterator[str]:
        nonlocal events
        for _ in range(100):
            events += 1
            yield "event"
            await anyio.lowlevel.checkpoint()

    async def receive() -> Any:
        return await anyio.sleep_forever()

    with anyio.fail_after(10):
        await sse_app(source)(cycle.scope, receive, cycle.send)
    assert cycle.written == 6
    assert events < 8
    assert cycle.disconnected


@on_asyncio
async def test_what_two_requests_share_leads_nowhere() -> None:
    """A middleware may put one object of its own into all scopes."""
    cycles = [Cycle(), Cycle()]
    shared: Any = {}
    for cycle in cycles:
        cycle.scope["state"] = shared
    scope = http_scope(state=shared)
    async with requests(*cycles):
        server = wrapped(scope)
        server.abort()
        assert (server.aborted, server.progress(), server.is_gone()) == (False, None, False)
    assert [cycle.aborts for cycle in cycles] == [0, 0]


@on_asyncio
async def test_a_request_that_began_after_the_list_was_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All requests are listed for a tenth of the time at most."""
    monkeypatch.setattr(connections, "perf_counter", iter(range(100)).__next__)  # slow: 1 s each
    async with requests(first := Cycle()):
        assert wrapped(dict(first.scope)).progress() is not None
        async with requests(late := Cycle()):
            server = wrapped(dict(late.scope))
            assert server.progress() is None
            assert wrapped(dict(first.scope)).progress() is not None
            clock = of_task().of_loop.clock
            found = of_task().own(servers._connections)
            monkeypatch.setattr(found, "_look_again", clock())
            assert server.progress() is not None


@on_asyncio
@pytest.mark.parametrize("behind", [False, True])
async def test_a_closed_connection_that_nobody_tells_of(
    monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    """Regression 31: uvicorn tells it only to the last of requests that came together."""
    monkeypatch.setattr(connections, "PERIOD", 0.02)
    closed, open_ = Cycle(), Cycle()
    lost: list[str] = []
    async with requests(closed, open_):
        seen = [
            wrapped(dict(cycle.scope))
            if behind
            else servers.recognise(cycle.scope, cycle.send, of_task(), Stopping(signalled=False))
            for cycle in (closed, open_)
        ]
        for name, server in zip(("closed", "open"), seen, strict=True):
            server.attach(lambda: None, partial(lost.append, name))
        await anyio.sleep(0.1)
        assert lost == []
        closed.closing = True
        with anyio.fail_after(10):
            while not lost:
                await anyio.sleep(0.01)
        await anyio.sleep(0.1)
        assert lost == ["closed"]
        # Or uvicorn would log that the response is incomplete.
        assert closed.disconnected
        assert closed.message_event.is_set()
        for server in seen:
            server.detach()
        open_.closing = True
        await anyio.sleep(0.1)
        assert lost == ["closed"]
