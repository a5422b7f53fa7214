"""Behind a middleware whose ``send`` may do anything, events and pings still wake no task.

What such a ``send`` has begun is never dropped, nor done a second time.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import inspect
import re
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import chain, repeat
from itertools import cycle as cycle_through
from typing import Any, Self

import anyio
import pytest
import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from sse_asgi import CloseReason, Shutdown, sse_app
from sse_asgi.hub import Hub
from sse_asgi.runtime.asyncio import AsyncioRuntime

from .at_once import Cycle
from .entry_points import ENTRY_POINTS
from .streams import Recorder, http_scope
from .test_at_once import Counted, data, serving, until

pytestmark = pytest.mark.anyio

by_task = pytest.mark.skipif(sys.version_info < (3, 12), reason="no task begins at once there")


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """On trio nothing can be sent without a task that wakes."""
    backend: str = request.param
    return backend


Send = Callable[[Any], Any]

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="not set")


class Middleware:
    """Puts a ``send`` of its own around the server's, and sees that it is called as ASGI says."""

    def __init__(self, app: Any) -> None:
        self.app = app
        #: The messages that its ``send`` was called with, and how many calls have not ended.
        self.messages: list[Any] = []
        self.under_way = 0
        self.cancelled = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        variable.set("of the request")

        async def around(message: Any) -> None:
            assert not self.under_way, "two messages are sent at a time"
            self.messages.append(message)
            self.under_way += 1
            try:
                await self.send(message, send)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.under_way -= 1

        try:
            await self.app(scope, receive, around)
        finally:
            assert not self.under_way, "a send has outlived its stream"

    async def send(self, message: Any, send: Send) -> None:
        await send(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


class Hashes(Middleware):
    """Has a state that a message must not change twice."""

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.state = hashlib.sha256()

    async def send(self, message: Any, send: Send) -> None:
        self.state.update(message.get("body", b""))
        await send(message)


class NeedsItsTask(Middleware):
    """Uses what works in a task only, and with the context variables of the request only."""

    async def send(self, message: Any, send: Send) -> None:
        assert asyncio.current_task() is not None
        assert variable.get() == "of the request"
        with anyio.fail_after(10):
            async with asyncio.timeout(10):
                await send(message)


class Splits(Middleware):
    """Makes several messages of one."""

    async def send(self, message: Any, send: Send) -> None:
        body = message.get("body", b"")
        for at in range(0, len(body) - 1, 5):
            await send({**message, "body": body[at : at + 5], "more_body": True})
            message = {**message, "body": body[at + 5 :]}
        await send(message)


class IsNoCoroutineFunction(Middleware):
    """Its ``send`` returns something that can be awaited, and is no coroutine."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        class Awaitable:
            def __init__(self, message: Any) -> None:
                self.message = message

            def __await__(self) -> Any:
                return send(self.message).__await__()

        await self.app(scope, receive, Awaitable)


class Lets(Middleware):
    """Lets others run in each send."""

    async def send(self, message: Any, send: Send) -> None:
        await asyncio.sleep(0)
        await send(message)
        await asyncio.sleep(0)


def cors(app: Any) -> Any:
    return CORSMiddleware(app, allow_origins=["*"])


def gzip(app: Any) -> Any:
    return GZipMiddleware(app)


class PassThrough(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


PROMPT: list[Any] = [
    cors, gzip, Hashes, NeedsItsTask, Splits, IsNoCoroutineFunction, lambda app: cors(Hashes(app))
]  # fmt: skip
PROMPT_IDS = ["cors", "gzip", "hashes", "a task", "splits", "no coroutine", "two"]


def origin() -> dict[str, Any]:
    return http_scope(headers=[(b"origin", b"https://example.org")])


@by_task
@pytest.mark.parametrize("middleware", PROMPT, ids=PROMPT_IDS)
async def test_an_event_of_a_hub_wakes_no_task(middleware: Any, entry_point: str) -> None:
    hub = Hub()
    sources: list[Counted] = []

    def factory() -> Counted:
        sources.append(Counted(hub.subscribe("t")))
        return sources[-1]

    cycle = Cycle()
    async with serving(middleware(ENTRY_POINTS[entry_point](factory)), cycle):
        await until(lambda: hub.subscribers("t"))
        for number in range(10):
            await hub.publish("t", str(number))
            await asyncio.sleep(0.001)
        assert data(cycle) == list(map(str, range(10)))
        assert sources.pop().steps == 1


def running_loop() -> Any:
    return asyncio.get_running_loop()


class Calls:
    """Counts what the event loop is asked to call."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        self.loop = running_loop()
        self.call_soon = call_soon = self.loop.call_soon

        def counting(*args: Any, **options: Any) -> Any:
            self.count += 1
            return call_soon(*args, **options)

        self.loop.call_soon = counting
        return self

    def __exit__(self, *args: object) -> None:
        del self.loop.call_soon


async def calls_for(app: Callable[[Any], Any], events: int, entry_point: str) -> int:
    """Return how many calls the event loop makes for some events of a source that waits."""
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def source() -> AsyncIterator[str]:
        while True:
            yield await queue.get()

    cycle = Cycle()
    async with serving(app(ENTRY_POINTS[entry_point](source)), cycle):
        for number in range(3):
            queue.put_nowait(str(number))
            await cycle.has(f"data: {number}".encode())
        with Calls() as calls:
            for number in range(events):
                queue.put_nowait(str(number))
                for _ in range(5):
                    await asyncio.sleep(0)
        assert len(data(cycle)) == 3 + events
    return calls.count


@pytest.mark.parametrize("middleware", PROMPT, ids=PROMPT_IDS)
async def test_an_event_that_is_waited_for_wakes_no_more_tasks_than_without(
    middleware: Any, entry_point: str
) -> None:
    without = min([await calls_for(lambda app: app, 20, "sse_app") for _ in range(3)])
    assert min([await calls_for(middleware, 20, entry_point) for _ in range(3)]) <= without


@by_task
@pytest.mark.parametrize("middleware", PROMPT, ids=PROMPT_IDS)
async def test_joined_events_and_pings_wake_no_task(middleware: Any) -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def source() -> AsyncIterator[str]:
        while True:
            for number in range(await queue.get()):
                yield str(number)

    async def calls(app: Any) -> int:
        cycle = Cycle()
        async with serving(app(sse_app(source, ping=1000)), cycle):
            queue.put_nowait(20)
            await until(lambda: len(data(cycle)) == 20)
            with Calls() as calls:
                for _ in range(10):
                    queue.put_nowait(20)
                    for _ in range(5):
                        await asyncio.sleep(0)
            assert len(data(cycle)) == 220
        return calls.count

    # If the machine is busy, a stream may let others run in between.
    without = min([await calls(lambda app: app) for _ in range(5)])
    assert min([await calls(middleware) for _ in range(5)]) <= without
    cycle = Cycle()
    async with serving(middleware(sse_app(source, ping=0.01)), cycle) as task:
        await cycle.has(b":\n\n")
        before = len(asyncio.all_tasks())
        pings = cycle.body.count(b":\n\n")
        await until(lambda: cycle.body.count(b":\n\n") > pings + 3)
        assert len(asyncio.all_tasks()) == before
        assert not task.done()


@pytest.mark.parametrize(
    "middleware", [*PROMPT, Lets, PassThrough], ids=[*PROMPT_IDS, "lets others run", "base http"]
)
async def test_nothing_is_lost_and_nothing_comes_twice(middleware: Any) -> None:
    hub = Hub()
    cycle, recorder = Cycle(), Recorder()
    app = middleware(sse_app(lambda: hub.subscribe("t"), ping=0.003, on_close=recorder.on_close))
    async with serving(app, cycle):
        await until(lambda: hub.subscribers("t"))
        for number in range(30):
            await hub.publish("t", str(number))
            if number % 3 == 0:
                await asyncio.sleep(0.002)
            if number == 10:
                cycle.pause()
            if number == 20:
                cycle.resume()
        await until(lambda: len(data(cycle)) >= 30)
        assert data(cycle) == list(map(str, range(30)))
        if isinstance(app, Hashes):
            assert app.state.digest() == hashlib.sha256(cycle.body).digest()
    assert 1 <= recorder.report.events <= 30
    if middleware is not gzip:
        assert recorder.report.bytes >= len(cycle.body)  # a last ping may find nobody


def waits_from_the_third_on(app: Any) -> NowAndThen:
    return NowAndThen(app, chain([("goes on", "goes on")] * 2, repeat(("waits", "goes on"))))


@by_task
@pytest.mark.parametrize(
    "middleware",
    [Lets, PassThrough, waits_from_the_third_on],
    ids=["lets others run", "base http", "waits from the third on"],
)
async def test_no_task_is_made_in_vain_behind_a_middleware_that_waits(
    middleware: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, cycle, made = Hub(), Cycle(), 0
    starter = AsyncioRuntime.starter

    def counting(runtime: AsyncioRuntime) -> Any:
        start: Any = starter(runtime)

        def start_one(coroutine: Any) -> Any:
            nonlocal made
            made += 1
            return start(coroutine)

        return start_one

    monkeypatch.setattr(AsyncioRuntime, "starter", counting)
    async with serving(middleware(sse_app(lambda: hub.subscribe("t"), ping=0.01)), cycle):
        await until(lambda: hub.subscribers("t"))
        for number in range(10):
            await hub.publish("t", str(number))
            await cycle.has(f"data: {number}".encode())
            await asyncio.sleep(0.005)
        pings = cycle.body.count(b":\n\n")
        await until(lambda: cycle.body.count(b":\n\n") > pings + 5)
    assert made <= 1


# -- a send that waits only now and then -----------------------------------------------------------

#: What a send does before and after that of the server.
WAITS: dict[str, Callable[[], Any]] = {
    "goes on": lambda: nothing(),
    "lets others run": lambda: asyncio.sleep(0),
    "waits": lambda: asyncio.sleep(0.002),
    "has a scope": lambda: in_a_scope(0.002),
    "has a timeout": lambda: in_a_timeout(0.002),
    "has a shield": lambda: in_a_shield(0.002),
}


async def nothing() -> None: ...


async def in_a_scope(seconds: float) -> None:
    with anyio.move_on_after(seconds):
        await anyio.sleep(10)


async def in_a_timeout(seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await asyncio.sleep(10)
    except TimeoutError:
        pass


async def in_a_shield(seconds: float) -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep(seconds)


class NowAndThen(Middleware):
    """Waits before and after the send of the server, as a plan says."""

    def __init__(self, app: Any, plan: Iterable[tuple[str, str]]) -> None:
        super().__init__(app)
        self.plan: Iterator[tuple[str, str]] = iter(plan)

    async def send(self, message: Any, send: Send) -> None:
        before, after = next(self.plan)
        await WAITS[before]()
        await send(message)
        await WAITS[after]()


plans = st.lists(
    st.tuples(st.sampled_from(sorted(WAITS)), st.sampled_from(sorted(WAITS))),
    min_size=1,
    max_size=8,
)
#: Most of the time it goes on, so that a send is often begun at once.
GOES_ON = [("goes on", "goes on")] * 4


@given(
    plan=plans,
    steps=st.lists(
        st.sampled_from(
            ["publish", "publish", "publish", "burst", "checkpoint", "wait", "pause", "resume"]
        ),
        max_size=40,
    ),
    end=st.sampled_from(["leaves", "cancel", "kick", "close", "drain", "nothing"]),
)
@example(plan=[("goes on", "waits")], steps=["publish", "wait", "publish", "publish"], end="cancel")
@settings(max_examples=75, deadline=None)
def test_a_client_has_every_event_once_and_in_order(
    plan: list[tuple[str, str]], steps: list[str], end: str
) -> None:
    async def main() -> None:
        hub, recorder, shutdown = Hub(max_events=10_000), Recorder(), Shutdown()
        app = NowAndThen(
            sse_app(
                lambda: hub.subscribe("t"),
                ping=0.003,
                shutdown=shutdown,
                on_close=recorder.on_close,
            ),
            cycle_through([*GOES_ON, *plan]),
        )
        cycle = Cycle()
        task = asyncio.ensure_future(app(http_scope(), cycle.receive, cycle.send))
        await until(lambda: hub.subscribers())
        published: list[str] = []
        for step in steps:
            if step == "publish":
                published.append(str(len(published)))
                await hub.publish("t", published[-1])
            elif step == "burst":
                for _ in range(50):
                    published.append(str(len(published)))
                    await hub.publish("t", published[-1])
            elif step == "checkpoint":
                await asyncio.sleep(0)
            elif step == "wait":
                await asyncio.sleep(0.004)
            else:
                cycle.pause() if step == "pause" else cycle.resume()
        if end == "nothing":
            cycle.resume()
            await until(lambda: len(data(cycle)) >= len(published))
            assert data(cycle) == published
            cycle.disconnect()
        elif end == "leaves":
            cycle.disconnect()
        elif end == "cancel":
            task.cancel()
        elif end == "kick":
            hub.kick(lambda subscription: True, last="bye")
        elif end == "close":
            hub.close()
        else:
            shutdown.drain()
        await asyncio.sleep(0)
        cycle.resume()
        await asyncio.wait([task], timeout=10)
        assert task.done()
        assert hub.subscribers() == 0
        assert not app.under_way
        got = data(cycle)
        if got and got[-1] == "bye":
            assert end == "kick"
            got.pop()
        assert got == published[: len(got)]
        assert recorder.report.events <= len(published) + 1
        if end in ("kick", "close", "drain"):
            assert cycle.complete
            assert recorder.report.bytes == len(cycle.body)
        if end == "cancel":
            assert task.cancelled()
        else:
            task.result()
        assert cycle.body == app.body[: len(cycle.body)]

    asyncio.run(main())


# -- ends, while a send waits that was begun at once -----------------------------------------------


class Locked(Middleware):
    """Waits for a lock before each send."""

    def __init__(self, app: Any, *, shield: bool = False, swallows: bool = False) -> None:
        super().__init__(app)
        self.free = asyncio.Event()
        self.free.set()
        self.shield = shield
        self.swallows = swallows
        #: What is raised when the wait is over.
        self.error: Exception | None = None

    async def send(self, message: Any, send: Send) -> None:
        if not self.free.is_set():
            if self.swallows:
                try:
                    await self.free.wait()
                except asyncio.CancelledError:
                    return
            with anyio.CancelScope(shield=self.shield):
                await self.free.wait()
            if self.error is not None:
                raise self.error
        await send(message)


class Begun:
    """A stream behind a lock, with one event that waits there."""

    def __init__(self, *, shield: bool = False, swallows: bool = False, **options: Any) -> None:
        self.hub, self.recorder, self.shutdown = Hub(), Recorder(), Shutdown()
        self.app = Locked(
            sse_app(
                lambda: self.hub.subscribe("t"),
                shutdown=self.shutdown,
                on_close=self.recorder.on_close,
                **options,
            ),
            shield=shield,
            swallows=swallows,
        )
        self.cycle = Cycle()

    async def __aenter__(self) -> Self:
        self.task = asyncio.ensure_future(
            self.app(http_scope(), self.cycle.receive, self.cycle.send)
        )
        await until(lambda: self.hub.subscribers("t"))
        await self.hub.publish("t", "0")
        await until(lambda: data(self.cycle) == ["0"])
        self.app.free.clear()
        await self.hub.publish("t", "1")
        await until(lambda: self.app.under_way)
        return self

    async def __aexit__(self, *args: object) -> None:
        await asyncio.wait([self.task], timeout=10)
        assert self.task.done()
        assert self.hub.subscribers() == 0
        assert not self.app.under_way
        assert len(self.recorder.reports) == 1


@pytest.fixture(params=[False, True], ids=["the watchdog has seen it", "right then"])
def right_then(request: pytest.FixtureRequest) -> bool:
    """Whether a stream ends in the moment in which the send waits."""
    right_then: bool = request.param
    return right_then


async def test_events_wait_behind_a_send_that_was_begun() -> None:
    async with Begun() as begun:
        for number in range(2, 6):
            await begun.hub.publish("t", str(number))
            await asyncio.sleep(0.002)
        assert data(begun.cycle) == ["0"]
        begun.app.free.set()
        await until(lambda: len(data(begun.cycle)) == 6)
        assert data(begun.cycle) == list(map(str, range(6)))
        begun.cycle.disconnect()
    assert begun.recorder.report.bytes == len(begun.cycle.body)


@pytest.mark.parametrize("end", ["kick", "close", "drain"])
async def test_an_end_comes_after_what_was_begun(end: str, right_then: bool) -> None:
    async with Begun() as begun:
        if not right_then:
            await asyncio.sleep(0.01)
        if end == "kick":
            begun.hub.kick(lambda subscription: True, last="bye")
        elif end == "close":
            begun.hub.close()
        else:
            begun.shutdown.drain()
        await asyncio.sleep(0.01)
        assert not begun.task.done()
        begun.app.free.set()
    assert data(begun.cycle) == ["0", "1", *(["bye"] if end == "kick" else [])]
    assert begun.cycle.complete
    assert not begun.app.cancelled


@pytest.mark.parametrize("shield", [False, True])
async def test_what_was_begun_ends_when_the_client_leaves(shield: bool, right_then: bool) -> None:
    async with Begun(shield=shield) as begun:
        if not right_then:
            await asyncio.sleep(0.01)
        begun.cycle.disconnect()
        if shield:  # it is never broken
            await asyncio.sleep(0.15)
            assert not begun.task.done()
            begun.app.free.set()
    assert begun.app.cancelled == (not shield)
    assert begun.recorder.report.reason is CloseReason.CLIENT_DISCONNECTED


async def test_what_was_begun_is_bounded_like_any_send() -> None:
    async with Begun(send_timeout=0.05) as begun:
        pass
    assert begun.app.cancelled
    assert begun.recorder.report.reason is CloseReason.SEND_TIMEOUT


async def test_a_drain_does_not_wait_for_long_for_what_was_begun() -> None:
    async with Begun(cleanup_timeout=0.05, send_timeout=None) as begun:
        begun.shutdown.drain()
    assert begun.app.cancelled
    assert begun.recorder.report.reason is CloseReason.SHUTDOWN
    assert not begun.cycle.complete


async def test_a_cancellation_ends_what_was_begun(right_then: bool) -> None:
    async with Begun(cleanup_timeout=0.05) as begun:
        if not right_then:
            await asyncio.sleep(0.01)
        begun.task.cancel()
    assert begun.task.cancelled()
    assert begun.app.cancelled
    assert begun.recorder.report.reason is CloseReason.CANCELLED


@by_task  # else the host sends, and no shield keeps Task.cancel() out
async def test_a_second_cancellation_does_not_leave_what_was_begun() -> None:
    async with Begun(cleanup_timeout=0.05, shield=True) as begun:
        begun.task.cancel()
        await asyncio.sleep(0.1)
        begun.task.cancel()
        await asyncio.sleep(0.05)
        assert not begun.task.done()
        begun.app.free.set()
    assert begun.task.cancelled()


async def test_a_scope_around_the_application_ends_what_was_begun(right_then: bool) -> None:
    hub, cycle, recorder = Hub(), Cycle(), Recorder()
    app = Locked(sse_app(lambda: hub.subscribe("t"), on_close=recorder.on_close))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app, http_scope(), cycle.receive, cycle.send)
            await until(lambda: hub.subscribers("t"))
            await hub.publish("t", "0")
            await cycle.has(b"data: 0")
            app.free.clear()
            await hub.publish("t", "1")
            await until(lambda: app.under_way)
            if not right_then:
                await asyncio.sleep(0.01)
            tasks.cancel_scope.cancel()
    assert not app.under_way
    assert recorder.report.reason is CloseReason.CANCELLED


async def test_a_send_that_swallows_its_cancellation_is_over() -> None:
    async with Begun(swallows=True) as begun:
        begun.cycle.disconnect()
    assert begun.recorder.report.reason is CloseReason.CLIENT_DISCONNECTED


# -- errors ----------------------------------------------------------------------------------------


class Fails(Middleware):
    """Raises, at once or after a while, when something of the body comes."""

    def __init__(self, app: Any, error: BaseException, text: bytes, *, waits: bool) -> None:
        super().__init__(app)
        self.error, self.text, self.waits = error, text, waits

    async def send(self, message: Any, send: Send) -> None:
        if self.text in message.get("body", b""):
            if self.waits:
                await asyncio.sleep(0.01)
            raise self.error
        await send(message)


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("text", [b"data: 3", b":\n\n"], ids=["an event", "a ping"])
@pytest.mark.parametrize(
    "error", [LookupError("of the middleware"), OSError("gone")], ids=["error", "client gone"]
)
async def test_what_a_send_raises_ends_the_stream(waits: bool, text: bytes, error: Any) -> None:
    hub, recorder, cycle = Hub(), Recorder(), Cycle()
    app = Fails(
        sse_app(
            lambda: hub.subscribe("t"),
            on_close=recorder.on_close,
            ping=0.05 if text == b":\n\n" else 0,
            on_error=lambda exc: "sorry",
        ),
        error,
        text,
        waits=waits,
    )
    task = asyncio.ensure_future(app(http_scope(), cycle.receive, cycle.send))
    await until(lambda: hub.subscribers("t"))
    for number in range(5):
        await hub.publish("t", str(number))
        await asyncio.sleep(0.002)
    await asyncio.wait([task], timeout=10)
    assert task.done()
    # The response is beyond repair, so nothing more is sent.
    assert text in app.messages[-1]["body"]
    assert app.body.count(text) == 1
    if isinstance(error, OSError):
        task.result()
        assert recorder.report.reason is CloseReason.CLIENT_DISCONNECTED
    else:
        assert task.exception() is error
        assert recorder.report.reason is CloseReason.ERROR
    got = data(cycle)
    assert got == list(map(str, range(len(got))))
    assert len(got) == 3 or text == b":\n\n"
    assert recorder.report.bytes == len(cycle.body)
    assert hub.subscribers() == 0


async def test_an_error_of_what_was_begun_is_raised_although_the_stream_closes(
    right_then: bool,
) -> None:
    async with Begun() as begun:
        begun.app.error = LookupError("of the middleware")
        if not right_then:
            await asyncio.sleep(0.01)
        begun.shutdown.drain()
        await asyncio.sleep(0.01)
        begun.app.free.set()
    assert begun.task.exception() is begun.app.error
    assert data(begun.cycle) == ["0"]
    assert not begun.cycle.complete


async def test_a_send_that_cancels_itself_ends_the_stream() -> None:
    hub, recorder, cycle = Hub(), Recorder(), Cycle()
    app = Fails(
        sse_app(lambda: hub.subscribe("t"), on_close=recorder.on_close, cleanup_timeout=0.05),
        asyncio.CancelledError(),
        b"data: 1",
        waits=False,
    )
    task = asyncio.ensure_future(app(http_scope(), cycle.receive, cycle.send))
    await until(lambda: hub.subscribers("t"))
    for number in range(3):
        await hub.publish("t", str(number))
        await asyncio.sleep(0.002)
    await asyncio.wait([task], timeout=10)
    assert task.done()
    assert data(cycle) == ["0"]
    assert hub.subscribers() == 0


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "later"])
async def test_the_traceback_of_what_a_send_raises_names_its_place(waits: bool) -> None:
    hub, cycle = Hub(), Cycle()
    app = Fails(sse_app(lambda: hub.subscribe("t")), LookupError(), b"data: 1", waits=waits)
    task = asyncio.ensure_future(app(http_scope(), cycle.receive, cycle.send))
    await until(lambda: hub.subscribers("t"))
    for number in range(2):
        await hub.publish("t", str(number))
        await asyncio.sleep(0.002)
    await asyncio.wait([task], timeout=10)
    error = task.exception()
    assert error is app.error
    assert traceback.extract_tb(error.__traceback__)[-1].line == "raise self.error"


async def test_a_send_that_is_marked_as_a_coroutine_function_may_raise_when_called() -> None:
    hub, cycles = Hub(), [Cycle(), Cycle()]

    async def marked(scope: Any, receive: Any, send: Any) -> None:
        def around(message: Any) -> Any:
            if b"data: 2" in message.get("body", b""):
                raise OSError("gone")
            return send(message)

        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(around)
        await sse_app(lambda: hub.subscribe("t"))(scope, receive, around)

    async with (
        serving(marked, cycles[0]) as task,
        serving(sse_app(lambda: hub.subscribe("t")), cycles[1]),
    ):
        await until(lambda: hub.subscribers("t") == 2)
        for number in range(5):
            await hub.publish("t", str(number))
            await asyncio.sleep(0.001)
        await until(task.done)
        assert data(cycles[0]) == ["0", "1"]
        await until(lambda: data(cycles[1]) == list(map(str, range(5))))  # the others go on


@by_task  # else the task of the stream raises it
def test_a_response_is_not_complete_whose_send_has_ended_the_process() -> None:
    cycle, recorder = Cycle(), Recorder()

    async def main() -> None:
        hub = Hub()
        app = Fails(
            sse_app(lambda: hub.subscribe("t"), on_close=recorder.on_close),
            SystemExit(3),
            b"data: 1",
            waits=False,
        )
        task = asyncio.ensure_future(app(http_scope(), cycle.receive, cycle.send))
        await until(lambda: hub.subscribers("t"))
        for number in range(2):
            await hub.publish("t", str(number))
            await asyncio.sleep(0.002)
        await task

    with pytest.raises(SystemExit):
        asyncio.run(main())
    assert data(cycle) == ["0"]
    assert not cycle.complete
    assert recorder.report.events == 1


async def test_a_send_may_wait_for_what_the_source_is_about_to_wait_for() -> None:
    shared: asyncio.Future[None] = running_loop().create_future()
    cycle = Cycle()

    async def source() -> AsyncIterator[str]:
        yield "first"
        await asyncio.sleep(0)
        for number in range(20):
            yield str(number)
        await shared
        yield "last"

    class WaitsForIt(Middleware):
        async def send(self, message: Any, send: Send) -> None:
            if b"data: 19" in message.get("body", b""):
                await shared
            await send(message)

    async with serving(WaitsForIt(sse_app(source)), cycle) as task:
        await cycle.has(b"data: 3")
        await asyncio.sleep(0.01)
        shared.set_result(None)
        await until(task.done)
    assert data(cycle) == ["first", *map(str, range(20)), "last"]
    assert cycle.complete


# -- a real server ---------------------------------------------------------------------------------


@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_on_uvicorn_a_slow_client_gets_everything_once_and_holds_up_nobody(http: Any) -> None:
    hub = Hub(max_events=1000, max_bytes=2**26)
    apps: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        apps[scope["path"]] = NeedsItsTask(sse_app(lambda: hub.subscribe("t"), ping=0.01))
        await cors(apps[scope["path"]])(scope, receive, send)

    server = uvicorn.Server(
        uvicorn.Config(app, port=0, http=http, lifespan="off", log_level="error")
    )

    async def connect(path: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(server.servers[0].sockets[0].getsockname())
        reader, writer = await asyncio.open_connection(sock=sock)
        writer.write(b"GET %s HTTP/1.1\r\nhost: x\r\norigin: https://x.org\r\n\r\n" % path)
        return reader, writer

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve)
            await until(lambda: server.started)
            clients = [await connect(b"/slow"), await connect(b"/quick")]
            (slow, _), (quick, _) = clients
            await until(lambda: hub.subscribers("t") == 2)
            for number in range(100):
                await hub.publish("t", f"{number} " + "x" * 50_000)
                await quick.readuntil(b"data: %d " % number)
            assert len(apps["/slow"].body) < len(apps["/quick"].body)
            for number in range(100):
                await slow.readuntil(b"data: %d " % number)
            await hub.publish("t", "last")
            for reader, _ in clients:
                await reader.readuntil(b"data: last")
            for each in apps.values():
                numbers = re.findall(rb"^data: (\S+)", each.body, re.MULTILINE)
                assert numbers == [*(b"%d" % number for number in range(100)), b"last"]
            hub.close()
            for reader, writer in clients:
                await reader.readuntil(b"0\r\n\r\n")  # the end of the response
                writer.close()
            server.should_exit = True
