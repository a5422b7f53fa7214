"""What a client has of a stream that is told to end: all that was accepted, or no clean end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
import trio

from sse_asgi import CloseReason, Shutdown, sse_app
from sse_asgi.servers.base import Server

from .at_once import Cycle
from .plain import Plain, in_a_scope, is_an_event
from .streams import Recorder, http_scope, on_mock_clock

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("through_every_entry_point")]


class Counting:
    """A source that never waits, and knows the last event that it was resumed after."""

    def __init__(self, most: int = 100_000) -> None:
        self.resumed = 0
        self.closed = False
        self._most = most

    async def source(self) -> AsyncIterator[str]:
        try:
            for number in range(1, self._most + 1):
                yield str(number)
                self.resumed = number
        finally:
            await anyio.lowlevel.checkpoint()
            self.closed = True


def frames(first: int, last: int) -> bytes:
    return b"".join(b"data: %d\n\n" % number for number in range(first, last + 1))


def without_pings(body: bytes) -> bytes:
    return body.replace(b":\n\n", b"")


async def until_closed(source: Any) -> None:
    with anyio.fail_after(10):
        while not source.closed:
            await anyio.sleep(0.001)


# -- a server that only does what ASGI says --------------------------------------------------------


@pytest.mark.parametrize("ends", [False, True])
async def test_a_stream_is_closed_when_the_start_was_sent_and_the_first_event_was_not(
    ends: bool,
) -> None:
    """The source waited for the watchdog to send the start, and is woken when it was sent. Before
    it runs, the stream is closed: it sends nothing then, since that would be interrupted at once.
    """
    shutdown = Shutdown()
    sent: list[Any] = []
    returned = anyio.Event()
    begun = anyio.Event()

    async def source() -> AsyncIterator[str]:
        await begun.wait()  # the start is on its way
        yield "first"
        if not ends:
            await anyio.sleep_forever()

    async def receive() -> Any:
        await anyio.sleep_forever()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and not message["body"]:
            begun.set()
            await anyio.wait_all_tasks_blocked()
            shutdown.drain()
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
        else:
            await anyio.lowlevel.checkpoint()  # as for a lock, before anything is written
        sent.append(message)

    app = sse_app(source, shutdown=shutdown)
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await app(http_scope(), receive, send)
            returned.set()

        tasks.start_soon(run)
        with anyio.fail_after(10):
            await returned.wait()
    assert without_pings(b"".join(message.get("body", b"") for message in sent)) == (
        b"data: first\n\n"
    )
    assert sent[-1]["more_body"] is False


@pytest.mark.parametrize("stuck_at", [1, 3, 6, 300, 3000])
@pytest.mark.parametrize("then", ["reads on", "does not"])
async def test_a_send_under_way_may_come_to_its_end(stuck_at: int, then: str) -> None:
    """The client has stopped in the middle of a source that never waits."""
    counting, recorder, shutdown = Counting(), Recorder(), Shutdown()
    wanted = b"data: %d\n" % stuck_at

    def stuck(message: Any) -> bool:
        return wanted in message.get("body", b"")

    app = sse_app(
        counting.source, shutdown=shutdown, send_timeout=None, on_close=recorder.on_close,
        cleanup_timeout=100 if then == "reads on" else 0.1,
    )  # fmt: skip
    async with Plain(app, stuck=stuck) as server:
        await server.gets_stuck()
        shutdown.drain()
        await anyio.sleep(0.02)
        if then == "reads on":
            assert not server.returned
            server.resume()
        await server.returns()
        assert server.error is None
        if then == "reads on":
            # What the source was resumed after, and the event that it is suspended at.
            assert server.complete
            got = without_pings(server.body)
            last = got.count(b"data")
            assert got == frames(1, last)
            assert last - counting.resumed in (0, 1)
            assert recorder.report.events == last
        else:
            assert not server.complete
            assert server.body == frames(1, server.body.count(b"data"))
    assert recorder.report.reason is CloseReason.SHUTDOWN


@on_mock_clock
async def test_a_send_under_way_has_cleanup_timeout_from_the_end_of_the_grace_period() -> None:
    for takes, complete in ((11.5, True), (13.5, False)):
        recorder, shutdown = Recorder(), Shutdown()

        async def source() -> AsyncIterator[str]:
            yield "slow"
            await trio.sleep_forever()

        app = sse_app(
            source, ping=None, shutdown=shutdown, send_timeout=None, shutdown_grace_period=5,
            cleanup_timeout=7, on_close=recorder.on_close,
        )  # fmt: skip
        async with Plain(app, stuck=is_an_event) as server:
            await trio.sleep(10)
            shutdown.drain()
            await trio.sleep(takes)
            server.resume()
            await server.returns()
            assert server.complete is complete
            assert server.body == (b"data: slow\n\n" if complete else b"")
        assert server.took == pytest.approx(10 + min(takes, 5 + 7))
        assert recorder.report.reason is CloseReason.SHUTDOWN
        assert recorder.report.events == complete


@on_mock_clock
async def test_the_source_is_not_asked_for_more_when_that_send_has_ended() -> None:
    counting, shutdown = Counting(), Shutdown()
    app = sse_app(counting.source, shutdown=shutdown, send_timeout=None, cleanup_timeout=7)

    def stuck(message: Any) -> bool:
        return bool(message.get("body") == b"data: 3\n\n")

    async with Plain(app, stuck=stuck) as server:
        await server.gets_stuck()
        shutdown.drain()
        await trio.sleep(3)
        server.resume()
        await server.returns()
        assert server.complete
        assert server.body == frames(1, 3)
    assert counting.resumed <= 3
    assert counting.closed


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_is_joined_when_the_stream_is_closed_arrives() -> None:
    """Events that the source was resumed after, and that are held to be joined."""
    counting, shutdown = Counting(), Shutdown()
    drained = False

    async def source() -> AsyncIterator[str]:
        async for event in counting.source():
            yield event
            if event == "50" and not drained:
                drain()

    def drain() -> None:
        nonlocal drained
        drained = True
        shutdown.drain(0)

    async with Plain(sse_app(source, shutdown=shutdown)) as server:
        await server.returns()
        assert server.complete
        got = without_pings(server.body)
        assert got == frames(1, got.count(b"data"))
        assert got.count(b"data") >= counting.resumed >= 50


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("sends", ["the host", "the watchdog"])
async def test_an_interrupted_send_that_nobody_knows_about_is_no_clean_end(sends: str) -> None:
    recorder = Recorder()

    async def source() -> AsyncIterator[str]:
        for number in range(8 if sends == "the watchdog" else 1):
            yield str(number)
        await anyio.sleep_forever()

    def stuck(message: Any) -> bool:
        return (b"data: 7" if sends == "the watchdog" else b"data: 0") in message.get("body", b"")

    app = sse_app(source, send_timeout=None, on_close=recorder.on_close)
    async with Plain(app, stuck=stuck) as server:
        await server.gets_stuck()
        server.cancel()
        await server.returns()
        server.resume()
        assert not server.complete
        # Nothing after it, and not itself a second time.
        assert server.body == frames(0, server.body.count(b"data") - 1)
        assert recorder.report.events == server.body.count(b"data")
    assert recorder.report.reason is CloseReason.CANCELLED


# -- a server whose send has written nothing while it waits ----------------------------------------


@pytest.mark.not_compressed
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("read", [4, 1, 100])
@pytest.mark.parametrize("ends", ["drain", "Task.cancel()", "a scope around"])
async def test_what_was_interrupted_is_sent_again_and_arrives_once(ends: str, read: int) -> None:
    counting, recorder, shutdown = Counting(), Recorder(), Shutdown()
    cycle, scope = Cycle(), anyio.CancelScope()
    app: Any = sse_app(
        counting.source, shutdown=shutdown, send_timeout=None, on_close=recorder.on_close
    )
    if ends == "a scope around":
        app = in_a_scope(app, scope)
    task = asyncio.ensure_future(app(http_scope(), cycle.receive, cycle.send))
    await cycle.has(b"data: %d\n" % read)
    cycle.pause()
    await asyncio.sleep(0.02)
    if ends == "drain":
        shutdown.drain()
    elif ends == "Task.cancel()":
        task.cancel()
    else:
        scope.cancel()
    await until_closed(counting) if ends != "drain" else await asyncio.sleep(0.02)
    assert not task.done()
    cycle.resume()
    await asyncio.wait([task], timeout=5)
    assert task.done()
    assert task.cancelled() is (ends == "Task.cancel()")
    assert cycle.complete
    got = without_pings(cycle.body)
    last = got.count(b"data")
    assert got == frames(1, last)
    assert last - counting.resumed in (0, 1)
    assert recorder.report.events == last


@pytest.mark.not_compressed
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_client_that_never_reads_the_rest_sees_no_clean_end() -> None:
    counting, recorder, shutdown = Counting(), Recorder(), Shutdown()
    cycle = Cycle()
    app = sse_app(
        counting.source, shutdown=shutdown, send_timeout=None, cleanup_timeout=0.1,
        on_close=recorder.on_close,
    )  # fmt: skip
    task = asyncio.ensure_future(app(http_scope(), cycle.receive, cycle.send))
    await cycle.has(b"data: 20\n")
    cycle.pause()
    await asyncio.sleep(0.02)
    shutdown.drain()
    await asyncio.wait([task], timeout=5)
    assert task.done()
    assert not cycle.complete
    assert cycle.body == frames(1, cycle.body.count(b"data"))
    assert recorder.report.events == cycle.body.count(b"data")
    assert recorder.report.bytes == len(cycle.body)


# -- an error comes after that ---------------------------------------------------------------------


class Failing(Recorder):
    """A source that raises when it is told to end: at once, or in its cleanup."""

    def __init__(self, where: str, shutdown: Shutdown, error: BaseException) -> None:
        super().__init__()
        self.where, self._shutdown, self._error = where, shutdown, error

    async def fail(self) -> AsyncIterator[str]:
        try:
            yield "a"
            if self.where == "in its grace period":
                await self._shutdown.wait()
                raise self._error
            await anyio.sleep_forever()
        finally:
            self.closed = True
            if self.where == "in its cleanup":
                raise self._error
            if self.where == "late in its cleanup":
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.02)
                raise self._error


WHERE = ["in its grace period", "in its cleanup", "late in its cleanup"]


@pytest.mark.parametrize("where", WHERE)
async def test_an_error_after_a_drain_is_no_clean_end(where: str) -> None:
    shutdown, error = Shutdown(), KeyError("mine")
    failing = Failing(where, shutdown, error)
    app = sse_app(
        failing.fail, shutdown=shutdown, on_close=failing.on_close,
        shutdown_grace_period=5 if where == "in its grace period" else 0,
    )  # fmt: skip
    async with Plain(app) as server:
        await server.has(b"data: a")
        shutdown.drain()
        await server.returns()
        assert server.error is error
        assert not server.complete
    assert failing.closed
    assert failing.report.error is error


@pytest.mark.parametrize("where", WHERE)
async def test_on_error_may_speak_after_a_drain(where: str) -> None:
    shutdown, error = Shutdown(), KeyError("mine")
    failing = Failing(where, shutdown, error)
    app = sse_app(
        failing.fail, shutdown=shutdown, on_close=failing.on_close,
        on_error=lambda exc: {"event": "error", "data": "sorry"},
        shutdown_grace_period=5 if where == "in its grace period" else 0,
    )  # fmt: skip
    async with Plain(app) as server:
        await server.has(b"data: a")
        shutdown.drain()
        await server.returns()
        assert server.error is None
        assert server.complete
        assert server.body == b"data: a\n\nevent: error\ndata: sorry\n\n"
    assert failing.report.error is error
    assert failing.report.events == 2


@pytest.mark.parametrize("where", WHERE[1:])
@pytest.mark.parametrize("speaks", [False, True])
async def test_an_error_after_a_cancellation(where: str, speaks: bool) -> None:
    error, scope = KeyError("mine"), anyio.CancelScope()
    failing = Failing(where, Shutdown(), error)
    app = sse_app(
        failing.fail, on_close=failing.on_close, on_error=lambda exc: "sorry" if speaks else None
    )
    async with Plain(in_a_scope(app, scope)) as server:
        await server.has(b"data: a")
        scope.cancel()
        await server.returns()
        assert server.complete is speaks
        assert (b"data: sorry" in server.body) is speaks
        assert server.error is (None if speaks else error)
    assert failing.report.error is error


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("where", WHERE[1:])
@pytest.mark.parametrize("speaks", [False, True])
async def test_an_error_after_a_cancelled_task(where: str, speaks: bool) -> None:
    error = KeyError("mine")
    failing = Failing(where, Shutdown(), error)
    app = sse_app(
        failing.fail, on_close=failing.on_close, on_error=lambda exc: "sorry" if speaks else None
    )
    async with Plain(app) as server:
        await server.has(b"data: a")
        server.cancel()
        await server.returns()
        assert server.complete is speaks
        assert (b"data: sorry" in server.body) is speaks
        assert server.error is (None if speaks else error)
    assert failing.report.error is error


@pytest.mark.not_compressed
@pytest.mark.parametrize("taken", [True, False])
async def test_a_last_event_counts_if_it_was_taken(taken: bool) -> None:
    """What a source yields when it is cancelled, and what ``on_error`` returns."""
    for kind in ("last event", "on_error"):
        recorder, shutdown = Recorder(), Shutdown()

        async def source() -> AsyncIterator[str]:
            yield "a"
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                if kind == "on_error":
                    raise ValueError from None
                yield "bye"
                raise

        def is_the_end(message: Any) -> bool:
            return message.get("more_body") is False

        app = sse_app(
            source, shutdown=shutdown, on_close=recorder.on_close, cleanup_timeout=0.1,
            on_error=lambda exc: "bye",
        )  # fmt: skip
        async with Plain(app, stuck=lambda m: not taken and is_the_end(m)) as server:
            await server.has(b"data: a")
            shutdown.drain()
            await server.returns()
            assert server.error is None
            assert server.complete is taken
            assert (b"data: bye" in server.body) is taken
        assert recorder.report.events == 1 + taken, kind
        assert recorder.report.bytes == len(server.body)


# -- no exception, but an error --------------------------------------------------------------------


class Panic(BaseException):
    """What the extensions of Rust raise, and is no Exception."""


@pytest.mark.parametrize("where", ["a step", "the cleanup"])
@pytest.mark.parametrize("ends", ["by itself", "drain", "disconnect"])
async def test_a_base_exception_is_an_error(where: str, ends: str) -> None:
    recorder, shutdown, panic = Recorder(), Shutdown(), Panic()
    asked: list[Exception] = []

    async def source() -> AsyncIterator[str]:
        try:
            yield "a"
            if ends != "by itself":
                await anyio.sleep_forever()
            if where == "a step":
                raise panic
        finally:
            if where == "the cleanup" or ends != "by itself":
                raise panic

    app = sse_app(source, shutdown=shutdown, on_close=recorder.on_close, on_error=asked.append)
    async with Plain(app) as server:
        await server.has(b"data: a")
        if ends == "drain":
            shutdown.drain()
        elif ends == "disconnect":
            server.disconnect()
        await server.returns()
        assert server.error is panic
        assert not server.complete
    assert recorder.report.error is panic
    assert asked == []
    if ends == "by itself":
        assert recorder.report.reason is CloseReason.ERROR


@pytest.mark.sse_app_only
@pytest.mark.parametrize("where", ["on_error", "ping_message_factory"])
async def test_a_base_exception_of_another_function_closes_the_source(where: str) -> None:
    recorder, panic = Recorder(), Panic()

    def raises(*args: Any) -> Any:
        raise panic

    async def source() -> AsyncIterator[str]:
        try:
            yield "a"
            await anyio.sleep(0.05 if where == "on_error" else 1000)
            raise ValueError
        finally:
            recorder.closed = True

    options: Any = {"ping": 0.02, "ping_message_factory": lambda: "ping", where: raises}
    app = sse_app(source, on_close=recorder.on_close, **options)
    async with Plain(app) as server:
        await server.returns()
        error = server.error
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        assert error is panic
        assert not server.complete
    assert recorder.closed
    assert len(recorder.reports) == 1


# -- a cleanup that is late ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["swallows", "shield"])
@pytest.mark.parametrize("ends", ["drain", "disconnect", "scope"])
async def test_a_late_cleanup_is_logged_when_it_is_late(
    how: str, ends: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutdown, goes_on, scope = Shutdown(), anyio.Event(), anyio.CancelScope()
    ended = False

    async def source() -> AsyncIterator[str]:
        nonlocal ended
        yield "a"
        if how == "shield":
            with anyio.CancelScope(shield=True):
                await goes_on.wait()
        else:
            while not goes_on.is_set():
                try:
                    await anyio.sleep(0.01)
                except BaseException:  # it knows no better
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep(0.01)
        ended = True

    app = in_a_scope(sse_app(source, shutdown=shutdown, cleanup_timeout=0.1), scope)
    async with Plain(app) as server:
        await server.has(b"data: a")
        if ends == "drain":
            shutdown.drain()
        elif ends == "disconnect":
            server.disconnect()
        else:
            scope.cancel()
        with anyio.fail_after(5):
            while "within cleanup_timeout=0.1" not in caplog.text:
                await anyio.sleep(0.01)
        assert not ended  # a shield is never broken, and nobody can stop who swallows
        goes_on.set()
        await server.returns()
        assert ended
    assert caplog.text.count("within cleanup_timeout") == 1


@on_mock_clock
async def test_a_cleanup_is_late_at_cleanup_timeout_and_not_before() -> None:
    for takes, late in ((6.9, 0), (7.1, 1)):
        recorder, logged = Recorder(), []

        async def source() -> AsyncIterator[str]:
            try:
                yield "a"
                await trio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await trio.sleep(takes)

        class Handler:
            level = 0

            def handle(self, record: Any) -> None:
                logged.append((trio.current_time(), record.getMessage()))

        handler: Any = Handler()
        logging.getLogger("sse_asgi").addHandler(handler)
        try:
            async with Plain(
                sse_app(source, cleanup_timeout=7, on_close=recorder.on_close)
            ) as server:
                await server.has(b"data: a")
                left = trio.current_time()
                server.disconnect()
                await server.returns(50)
        finally:
            logging.getLogger("sse_asgi").removeHandler(handler)
        assert [at - left for at, _ in logged] == pytest.approx([7] * late)


# -- the server ------------------------------------------------------------------------------------


def test_a_server_that_only_keeps_to_asgi_sends_in_tasks() -> None:
    """Else the tests above would not be about two kinds of servers."""
    assert not Server.sends_at_once
