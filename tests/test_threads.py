"""Sync sources: each has a thread of its own, which nobody has to wait for."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import sqlite3
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
import trio

from sse_asgi import HTTPError, Shutdown, current_thread_limiter, sse_app
from sse_asgi.source import open_source
from sse_asgi.testing import connect

from .streams import http_scope, never

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("through_every_entry_point")]


async def events_of(app: Any) -> list[str]:
    async with connect(app) as stream:
        return [event.data async for event in stream]


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.002)


async def answer(app: Any, until: int) -> None:
    """Serve a client that leaves when it has had so many events."""
    leaves = anyio.Event()
    events = 0

    async def receive() -> Any:
        await leaves.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal events
        events += message.get("body", b"").count(b"data:")
        if events >= until:
            leaves.set()

    await app(http_scope(), receive, send)


def threads() -> list[threading.Thread]:
    """The threads of sources that have not ended."""
    return [thread for thread in threading.enumerate() if thread.name == "sse_asgi source"]


class Panic(BaseException):
    """What an extension in Rust raises."""


class Watched:
    """An iterable whose iterator notes where each of its calls runs."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.fails_at_close = False

    def note(self, what: str) -> None:
        self.calls.append(what)
        self.threads.add(threading.current_thread())

    def __iter__(self) -> WatchedIterator:
        self.note("iter")
        return WatchedIterator(self)


class WatchedIterator:
    def __init__(self, watched: Watched) -> None:
        self.watched = watched

    def __iter__(self) -> WatchedIterator:
        return self

    def __next__(self) -> str:
        self.watched.note("next")
        return "a"

    def close(self) -> None:
        self.watched.note("close")
        if self.watched.fails_at_close:
            raise KeyError("mine")


# -- one thread ------------------------------------------------------------------------------------


async def test_all_calls_run_in_one_daemon_thread_that_ends() -> None:
    watched = [Watched() for _ in range(6)]
    sources = iter(watched)
    app = sse_app(lambda: next(sources))
    for _ in watched:
        async with connect(app) as stream:
            for _ in range(3):
                await stream.receive()
    for each in watched:
        assert each.calls[:2] == ["iter", "next"]
        assert each.calls[-1] == "close"
        (thread,) = each.threads
        assert thread.daemon
        assert thread is not threading.main_thread()
    assert len({thread for each in watched for thread in each.threads}) == len(watched)
    await until(lambda: not threads())


async def test_a_connection_of_sqlite_lives_as_long_as_its_generator(tmp_path: Path) -> None:
    """Regression 29: fastapi-sqlalchemy#45."""
    file = tmp_path / "db"
    made = sqlite3.connect(file)
    with made:
        made.execute("create table numbers(n)")
        made.executemany("insert into numbers values(?)", [(number,) for number in range(50)])
    made.close()
    closed = 0

    def source() -> Iterator[str]:
        nonlocal closed
        db = sqlite3.connect(file)
        try:
            for (number,) in db.execute("select n from numbers order by n"):
                yield str(number)
        finally:
            db.execute("select 1")
            db.close()
            closed += 1

    app = sse_app(source)
    whole: list[list[str]] = []

    async def stays() -> None:
        whole.append(await events_of(app))

    async def leaves() -> None:
        async with connect(app) as stream:
            for _ in range(5):
                await stream.receive()

    async with anyio.create_task_group() as tasks:
        for client in [stays, leaves] * 3:
            tasks.start_soon(client)
    assert whole == [[str(number) for number in range(50)]] * 3
    assert closed == 6


async def test_a_token_of_a_context_variable_is_good_until_the_close() -> None:
    """Regression 17 for threads."""
    var: ContextVar[str] = ContextVar("var", default="unset")
    seen: list[str] = []

    def source() -> Iterator[str]:
        token = var.set("inside")
        try:
            while True:
                yield var.get()
        finally:
            var.reset(token)
            seen.append(var.get())

    var.set("outside")
    async with connect(sse_app(source)) as stream:
        assert [(await stream.receive()).data for _ in range(2)] == ["inside", "inside"]
    assert seen == ["outside"]
    assert var.get() == "outside"


async def test_the_next_event_is_not_fetched_before_the_last_was_taken() -> None:
    yielded = 0

    def source() -> Iterator[str]:
        nonlocal yielded
        while True:
            yielded += 1
            yield str(yielded)

    gate = anyio.Event()
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        if message.get("body"):
            sent.append(message["body"])
            await gate.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sse_app(source, send_timeout=None), http_scope(), never, send)
        await until(lambda: sent)
        await anyio.sleep(0.05)
        assert yielded == len(sent) == 1
        tasks.cancel_scope.cancel()
        gate.set()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ["0", "1", "2"],
        lambda: ("0", "1", "2"),
        lambda: iter(["0", "1", "2"]),
        lambda: map(str, range(3)),
        lambda: (str(number) for number in range(3)),
        lambda: itertools.islice(map(str, itertools.count()), 3),
        lambda: itertools.tee(["0", "1", "2"])[1],
    ],
)
async def test_whatever_can_be_iterated_is_a_source(make: Any) -> None:
    assert await events_of(sse_app(make)) == ["0", "1", "2"]
    assert current_thread_limiter().borrowed_tokens == 0


async def test_a_file_is_closed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a\nb\n")
    opened = (tmp_path / "file").open()
    async with connect(sse_app(lambda: opened)) as stream:
        assert (await stream.receive()).data == "a\n"
    assert opened.closed


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("raised", [KeyError("mine"), Panic("mine")])
@pytest.mark.parametrize("where", ["iter", "next", "close"])
async def test_what_any_call_raises_leaves_as_itself(raised: BaseException, where: str) -> None:
    class Raises(Watched):
        def note(self, what: str) -> None:
            super().note(what)
            if what == where:
                raise raised

    source = Raises()
    with pytest.raises(type(raised), match="mine") as caught:
        await answer(sse_app(lambda: source), until=3)
    assert caught.value is raised
    assert len(source.threads) == 1
    assert current_thread_limiter().borrowed_tokens == 0
    await until(lambda: not threads())


@pytest.mark.parametrize("raised", [StopAsyncIteration("mine"), StopIteration("mine")])
async def test_the_end_of_another_iterator_is_no_end(raised: Exception) -> None:
    """PEP 479, where Python itself does not see to it."""

    class Source:
        def __init__(self) -> None:
            self.steps = 0

        def __iter__(self) -> Source:
            if isinstance(raised, StopIteration):
                raise raised
            return self

        def __next__(self) -> str:
            self.steps += 1
            if self.steps > 1:
                raise raised
            return "a"

    with pytest.raises(RuntimeError, match=f"raised {type(raised).__name__}") as caught:
        await answer(sse_app(Source), until=3)
    assert caught.value.__cause__ is raised


async def test_an_error_of_a_step_that_nobody_waits_for_is_not_lost() -> None:
    release, running = threading.Event(), threading.Event()

    def source() -> Iterator[str]:
        yield "a"
        running.set()
        release.wait(20)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        async with connect(sse_app(source)) as stream:
            await stream.receive()
            await until(running.is_set)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.disconnect)
                await anyio.sleep(0.02)
                release.set()


async def test_an_error_after_the_time_for_the_cleanup_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    release = threading.Event()

    def source() -> Iterator[str]:
        try:
            yield "a"
        finally:
            release.wait(20)
            raise KeyError("mine")

    limiter = current_thread_limiter()
    async with connect(sse_app(source, cleanup_timeout=0.02)) as stream:
        await stream.receive()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not closed within cleanup_timeout=0.02" in caplog.text
    assert limiter.borrowed_tokens == 1
    assert len(threads()) == 1
    release.set()
    await until(lambda: not limiter.borrowed_tokens)
    await until(lambda: not threads())
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert "KeyError: 'mine'" in caplog.text


@pytest.mark.parametrize("error", [KeyError, Panic, StopIteration, GeneratorExit])
async def test_a_generator_that_yields_in_its_cleanup_and_raises(error: Any) -> None:
    """Its thread ends, whatever it raises (found by the fuzz)."""

    def source() -> Iterator[str]:
        try:
            yield "a"
        finally:
            yield "b"
            raise error("mine")

    with suppress(Exception, Panic):  # it is raised, or logged
        async with connect(sse_app(source)) as stream:
            await stream.receive()
    await until(lambda: not threads())
    assert current_thread_limiter().borrowed_tokens == 0


async def test_a_generator_that_will_not_be_closed(caplog: pytest.LogCaptureFixture) -> None:
    def source() -> Iterator[str]:
        with suppress(GeneratorExit):
            while True:
                yield "a"
                time.sleep(0.001)
        yield "b"

    async with connect(sse_app(source)) as stream:
        await stream.receive()
    (record,) = caplog.records
    assert "yielded while it was being closed" in record.message
    assert current_thread_limiter().borrowed_tokens == 0
    await until(lambda: not threads())


# -- limits ----------------------------------------------------------------------------------------


async def test_a_system_without_threads_left_is_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def source() -> Iterator[str]:
        yield "a"

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        async with connect(sse_app(source)) as stream:
            assert stream.status_code == 503
            assert "retry-after" in stream.headers
    assert current_thread_limiter().borrowed_tokens == 0
    assert await events_of(sse_app(source)) == ["a"]


async def test_the_limit_may_change_while_streams_are_open() -> None:
    def source() -> Iterator[str]:
        while True:
            yield "a"
            time.sleep(0.01)

    app = sse_app(source)
    limiter = current_thread_limiter()
    limiter.total_tokens = 3
    async with connect(app) as first, connect(app) as second:
        limiter.total_tokens = 1
        for stream in first, second, first, second:
            assert (await stream.receive()).data == "a"
        async with connect(app) as third:
            assert third.status_code == 503
        await first.disconnect()
        assert limiter.borrowed_tokens == 1
        async with connect(app) as third:
            assert third.status_code == 503
        limiter.total_tokens = 2
        async with connect(app) as third:
            assert (await third.receive()).data == "a"
    assert limiter.borrowed_tokens == 0


async def test_a_source_that_waits_for_ever_in_its_cleanup_keeps_its_place() -> None:
    limiter = current_thread_limiter()
    limiter.total_tokens = 1
    release = threading.Event()

    def source() -> Iterator[str]:
        try:
            yield "a"
        finally:
            release.wait(20)

    app = sse_app(source, cleanup_timeout=0.02)
    async with connect(app) as stream:
        await stream.receive()
    async with connect(app) as stream:
        assert stream.status_code == 503
    release.set()
    await until(lambda: not limiter.borrowed_tokens)
    assert await events_of(app) == ["a"]


@pytest.mark.sse_app_only
async def test_a_source_that_can_not_be_closed_for_want_of_a_thread_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    limiter = current_thread_limiter()
    source = open_source(WatchedIterator(Watched()))
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(HTTPError, match="no thread can be started"):
        await source.aclose()
    assert limiter.borrowed_tokens == 0


# -- never stepped ---------------------------------------------------------------------------------


class Unread:
    """Never iterated; its ``close()`` blocks."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.closed_in: list[threading.Thread] = []

    def __iter__(self) -> Iterator[str]:
        raise AssertionError

    def close(self) -> None:
        self.closed_in.append(threading.current_thread())
        self.release.wait(20)


async def test_what_is_closed_unread_is_closed_in_a_daemon_thread() -> None:
    """It was opened, and its stream was over before the first step."""
    shutdown = Shutdown()
    shutdown.drain()
    unread = Unread()
    limiter = current_thread_limiter()
    async with connect(sse_app(lambda: unread, shutdown=shutdown, cleanup_timeout=0.2)) as stream:
        assert await stream.read() == b""
    (thread,) = unread.closed_in
    assert thread.daemon
    assert limiter.borrowed_tokens == 1
    unread.release.set()
    await until(lambda: not limiter.borrowed_tokens)
    await until(lambda: not thread.is_alive())


async def test_what_is_refused_is_closed_in_a_daemon_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It was never opened."""
    current_thread_limiter().total_tokens = 0
    unread = Unread()
    async with connect(sse_app(lambda: unread, cleanup_timeout=0.2)) as stream:
        assert stream.status_code == 503
    (thread,) = unread.closed_in
    assert thread.daemon
    assert "not closed within cleanup_timeout=0.2" in caplog.text
    unread.release.set()
    await until(lambda: not thread.is_alive())


async def test_a_generator_that_was_never_begun_takes_no_thread() -> None:
    shutdown = Shutdown()
    shutdown.drain()

    def source() -> Iterator[str]:
        raise AssertionError
        yield "never"

    started = threading.Thread.start
    begun: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        begun.append(thread)
        started(thread)

    generator = source()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        async with connect(sse_app(lambda: generator, shutdown=shutdown)) as stream:
            assert await stream.read() == b""
    assert begun == []
    assert list(generator) == []  # it is closed


# -- what is left ----------------------------------------------------------------------------------


class Thing:
    """Something that can be watched go."""


@pytest.mark.parametrize("fails", [False, True])
async def test_a_source_is_freed_without_the_garbage_collector(fails: bool) -> None:
    watched: list[weakref.ref[Any]] = []

    def source(thing: Thing) -> Iterator[str]:
        yield "a"
        if fails:
            raise KeyError("mine")
        while True:
            time.sleep(0.001)
            yield "b"

    def make() -> Iterator[str]:
        thing = Thing()
        generator = source(thing)
        watched.extend([weakref.ref(thing), weakref.ref(generator)])
        return generator

    app = sse_app(make)
    gc.disable()
    try:
        for _ in range(3):
            with suppress(KeyError):
                await answer(app, until=1)
        await until(lambda: not threads())
        # A thread is not listed any more a moment before the last of its frames has gone.
        await until(lambda: [reference() for reference in watched] == [None] * 6)
    finally:
        gc.enable()


@pytest.mark.sse_app_only
@pytest.mark.parametrize("steps", [0, 2])
async def test_a_source_that_nobody_closes_is_closed_when_it_is_dropped(
    steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched()
    limiter = current_thread_limiter()
    source = open_source(WatchedIterator(watched))
    watched.fails_at_close = True
    for _ in range(steps):
        await source.step()
    assert limiter.borrowed_tokens == 1
    del source
    await until(lambda: not limiter.borrowed_tokens)
    await until(lambda: not threads())
    assert watched.calls == ["next"] * steps + ["close"]
    assert len(watched.threads) == 1
    assert "KeyError: 'mine'" in caplog.text


@pytest.mark.sse_app_only
async def test_a_source_that_is_closed_has_no_more_events() -> None:
    source = open_source(["a", "b"])
    assert await source.step() == "a"
    await source.aclose()
    await source.aclose()
    with pytest.raises(StopAsyncIteration):
        await source.step()
    assert current_thread_limiter().borrowed_tokens == 0


async def test_two_hundred_clients_leave_at_once() -> None:
    """Regression 14: django-bolt#25, daf_butler#1023. Each generator is in the middle of a step."""
    count, waiting, closed = 200, 0, 0
    lock = threading.Lock()
    release = threading.Event()

    def source() -> Iterator[str]:
        nonlocal waiting, closed
        try:
            yield "a"
            with lock:
                waiting += 1
            release.wait(20)
            yield "b"
        finally:
            with lock:
                closed += 1

    app = sse_app(source)
    leave = anyio.Event()

    async def client() -> None:
        async with connect(app) as stream:
            await stream.receive()
            await leave.wait()

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(client)
        await until(lambda: waiting == count)
        leave.set()
        await anyio.sleep(0.02)
        assert current_thread_limiter().borrowed_tokens == count
        release.set()
    assert closed == count
    assert current_thread_limiter().borrowed_tokens == 0
    await until(lambda: not threads())


@pytest.mark.sse_app_only
def test_an_event_loop_that_closes_while_a_step_runs() -> None:
    """The thread ends when the step does; nobody hears of it."""
    release, running = threading.Event(), threading.Event()
    closed: list[bool] = []

    def source() -> Iterator[str]:
        try:
            yield "a"
            running.set()
            release.wait(20)
            yield "b"
        finally:
            closed.append(True)

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with connect(sse_app(source, cleanup_timeout=0.01)) as stream:
                await stream.receive()
                await until(running.is_set)
                scope.cancel()

    for backend in "asyncio", "trio":
        anyio.run(main, backend=backend)
        running.clear()
    assert closed == []
    (left, right) = threads()
    release.set()
    left.join(20)
    right.join(20)
    assert closed == [True, True]


ENDS = """
import queue, asyncio, anyio
from sse_asgi import sse_app
from sse_asgi.testing import connect

def source():
    try:
        yield "a"
        queue.Queue().get()
    finally:
        print("never")

async def main():
    async with connect(sse_app(source, cleanup_timeout=0.05)) as stream:
        await stream.receive()
        await anyio.sleep(0.05)
    print("done")

anyio.run(main, backend=BACKEND)
"""


@pytest.mark.sse_app_only
async def test_a_process_exits_while_a_source_blocks_for_ever(anyio_backend: str) -> None:
    """Regression 28: pycrdt-websocket#148, basic-memory#1345."""
    with anyio.fail_after(30):
        done = await anyio.run_process(
            [sys.executable, "-W", "error", "-c", ENDS.replace("BACKEND", repr(anyio_backend))],
            stderr=subprocess.STDOUT,
        )
    assert done.stdout.decode().splitlines() == [
        "the source source (<string>, line 6) was not closed within cleanup_timeout=0.05 s",
        "done",
    ]


# -- event loops and threads -----------------------------------------------------------------------


@pytest.mark.parametrize("run", [asyncio.run, anyio.run, trio.run])
async def test_a_source_runs_an_event_loop_in_its_thread(run: Any) -> None:
    async def nested(number: int) -> str:
        await anyio.sleep(0.001)
        return str(number)

    def source() -> Iterator[str]:
        for number in range(3):
            yield run(nested(number)) if run is asyncio.run else run(nested, number)

    assert await events_of(sse_app(source)) == ["0", "1", "2"]


async def test_a_source_calls_into_the_event_loop_with_its_token() -> None:
    loop_thread = threading.get_ident()

    async def where() -> int:
        await anyio.lowlevel.checkpoint()
        return threading.get_ident()

    def source(token: Any) -> Iterator[str]:
        yield str(anyio.from_thread.run(where, token=token) == loop_thread)
        yield str(anyio.from_thread.run_sync(threading.get_ident, token=token) == loop_thread)

    app = sse_app(lambda: source(anyio.lowlevel.current_token()))
    assert await events_of(app) == ["True", "True"]


async def test_a_call_into_the_event_loop_without_its_token_says_what_to_do() -> None:
    def source() -> Iterator[str]:
        yield "a"
        anyio.from_thread.run_sync(threading.get_ident)

    with pytest.raises(anyio.NoEventLoopError) as caught:
        await events_of(sse_app(source))
    note, _ = caught.value.__notes__  # and where that was
    assert "token=" in note


async def test_a_source_whose_beginning_blocks_holds_nobody_up() -> None:
    release = threading.Event()

    class Slow(Watched):
        def __iter__(self) -> WatchedIterator:
            release.wait(20)
            return super().__iter__()

    slow = Slow()
    async with connect(sse_app(lambda: slow, ping=0.01)) as stream:
        assert await events_of(sse_app(lambda: ["other"])) == ["other"]
        await until(lambda: len(stream.comments) > 1)
        release.set()
        assert (await stream.receive()).data == "a"


async def test_nothing_is_logged_of_all_that(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sse_asgi"):  # at DEBUG there is a line for each stream
        watched = Watched()
        async with connect(sse_app(lambda: watched)) as stream:
            await stream.receive()
        await until(lambda: not threads())
    assert caplog.records == []
