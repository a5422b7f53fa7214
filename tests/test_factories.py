"""Factories that have to be awaited: the client and the server are watched meanwhile."""

from __future__ import annotations

import gc
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint

from sse_asgi import CloseReport, HTTPError, Shutdown, sse_app
from sse_asgi.starlette import EventSourceResponse

from .entry_points import ENTRY_POINTS
from .plain import Plain, in_a_scope
from .streams import Recorder, on_mock_clock

pytestmark = pytest.mark.anyio

#: A framework awaits what an endpoint does by itself; the endpoint's factory is none of ours.
OURS = pytest.mark.parametrize("make", [sse_app, ENTRY_POINTS["in a scope"]])


class Slow:
    """A factory that waits before it returns its source, and knows what has become of it."""

    def __init__(self, returns: Callable[[], Any] | None = None) -> None:
        self.began, self.goes_on = anyio.Event(), anyio.Event()
        self.cancelled = self.ended = False
        self.requests: list[Any] = []
        self.reports: list[CloseReport] = []
        self.errors: list[Exception] = []
        self.recorder = Recorder()
        self._returns = returns or (lambda: self.recorder.source("a"))

    async def factory(self, request: Any) -> Any:
        self.requests.append(request)
        self.began.set()
        try:
            await self.goes_on.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled = True
            raise
        finally:
            self.ended = True
        return self._returns()

    def options(self, **options: Any) -> dict[str, Any]:
        return {
            "on_close": self.reports.append,
            "on_error": self.errors.append,
            "max_connections": 1,
            "methods": ["GET", "POST"],
            **options,
        }

    def asks_nobody(self) -> bool:
        return self.reports == [] and self.errors == []


async def has_its_place_back(app: Any) -> bool:
    """Return whether the application, which has one place, takes another stream."""
    async with Plain(app) as server:
        with anyio.fail_after(5):
            while not server.messages and not server.returned:
                await anyio.sleep(0.001)
                for slow in SLOW:
                    slow.goes_on.set()
        return server.status == 200


SLOW: list[Slow] = []


@pytest.fixture
def slow() -> Any:
    SLOW.append(Slow())
    yield SLOW[0]
    SLOW.clear()


# -- the client leaves, and the server stops -------------------------------------------------------


@OURS
async def test_a_client_that_leaves_while_the_factory_is_awaited(make: Any, slow: Slow) -> None:
    app = make(slow.factory, **slow.options())
    async with Plain(app) as server:
        await slow.began.wait()
        server.disconnect()
        await server.returns()
        assert server.status == 499  # nobody gets it, and some middlewares want an answer
        assert server.error is None
    assert slow.cancelled
    assert slow.asks_nobody()
    assert await has_its_place_back(app)


@OURS
@pytest.mark.parametrize("method", ["GET", "get", "POST", "post", "pOsT"])
async def test_a_server_that_stops_while_the_factory_is_awaited(
    make: Any, method: str, slow: Slow
) -> None:
    """Who has sent something would take an empty stream for the answer."""
    shutdown = Shutdown()
    app = make(slow.factory, **slow.options(shutdown=shutdown))
    async with Plain(app, method=method) as server:
        await slow.began.wait()
        assert not slow.requests[0].shutting_down
        shutdown.drain()
        await server.returns()
        assert server.error is None
        assert server.complete
        if method.upper() == "GET":
            assert server.status == 200
            assert server.body == b""
            assert server.headers[b"content-type"].startswith(b"text/event-stream")
        else:
            assert server.status == 503
            assert server.headers[b"retry-after"] == b"5"
    assert slow.cancelled
    assert slow.asks_nobody()


@OURS
async def test_a_factory_has_the_grace_period_too(make: Any) -> None:
    shutdown, slow = Shutdown(), Slow(lambda: ["a"])
    app = make(slow.factory, **slow.options(shutdown=shutdown, shutdown_grace_period=10))
    async with Plain(app) as server:
        await slow.began.wait()
        shutdown.drain()
        await anyio.sleep(0.02)
        assert not server.returned
        assert slow.requests[0].shutting_down
        slow.goes_on.set()
        await server.returns()
        assert server.body == b"data: a\n\n"
        assert server.complete
    assert not slow.cancelled


@OURS
async def test_a_scope_around_cancels_a_factory(make: Any, slow: Slow) -> None:
    scope = anyio.CancelScope()
    app = make(slow.factory, **slow.options())
    async with Plain(in_a_scope(app, scope)) as server:
        await slow.began.wait()
        scope.cancel()
        await server.returns()
        assert scope.cancelled_caught
    assert slow.cancelled
    assert slow.asks_nobody()
    assert await has_its_place_back(app)


@OURS
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancelled_task_cancels_a_factory(make: Any, slow: Slow) -> None:
    app = make(slow.factory, **slow.options())
    async with Plain(app) as server:
        await slow.began.wait()
        server.cancel()
        await server.returns()
    assert slow.cancelled
    assert slow.asks_nobody()
    assert await has_its_place_back(app)


@on_mock_clock
async def test_a_factory_may_take_its_time() -> None:
    """Nothing is sent meanwhile, no ping either; the stream and its pings begin after that."""

    async def source() -> AsyncIterator[str]:
        await trio.sleep(7)
        yield "a"

    async def factory() -> AsyncIterator[str]:
        await trio.sleep(100)
        return source()

    began = trio.current_time()
    async with Plain(sse_app(factory, ping=5)) as server:
        await server.returns(1000)
        bodies = [message.get("body") for message in server.messages]
        assert [(at - began, body) for at, body in zip(server.times, bodies, strict=True)] == [
            (100, None),
            (100, b""),
            (105, b":\n\n"),
            (107, b"data: a\n\n"),
            (107, b""),
        ]


@on_mock_clock
async def test_a_deferred_start_is_counted_from_the_source() -> None:
    async def source() -> AsyncIterator[str]:
        await trio.sleep(50)
        yield "a"

    async def factory() -> AsyncIterator[str]:
        await trio.sleep(100)
        return source()

    began = trio.current_time()
    async with Plain(sse_app(factory, defer_start=3)) as server:
        await server.returns(1000)
        assert server.times[0] - began == 103


# -- what a factory raises -------------------------------------------------------------------------


class HTTPException(Exception):
    """What a framework calls a status."""

    def __init__(self, status_code: int) -> None:
        super().__init__(status_code)
        self.status_code = status_code


@OURS
@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt])
async def test_what_a_factory_raises_is_raised_before_the_start(
    make: Any, error: Any, waits: bool
) -> None:
    if error is KeyboardInterrupt:
        error = type("Panic", (BaseException,), {})()
    slow = Slow()

    async def factory() -> Any:
        if waits:
            await checkpoint()
        raise error

    app = make(factory, **slow.options())
    async with Plain(app) as server:
        await server.returns()
        assert server.error is error
        assert server.messages == []
    assert slow.asks_nobody()


@OURS
@pytest.mark.parametrize("waits", [True, False])
async def test_an_http_error_of_a_factory_is_a_status(make: Any, waits: bool) -> None:
    slow = Slow()

    async def factory() -> Any:
        if waits:
            await checkpoint()
        raise HTTPError(403, "not you", {"x-why": "because"})

    async with Plain(make(factory, **slow.options())) as server:
        await server.returns()
        assert server.status == 403
        assert server.body == b"not you"
        assert server.headers[b"x-why"] == b"because"
    assert slow.asks_nobody()


@OURS
@pytest.mark.parametrize("returned", [None, 17, "text", {"data": "x"}])
async def test_a_factory_that_returns_no_source(make: Any, returned: Any) -> None:
    slow = Slow(lambda: returned)
    slow.goes_on.set()
    async with Plain(make(slow.factory, **slow.options())) as server:
        await server.returns()
        assert isinstance(server.error, TypeError)
        assert server.messages == []
    assert slow.asks_nobody()


# -- the source that it returns is closed ----------------------------------------------------------


class Closable:
    """An iterator that knows how often it was closed, and asked for an event."""

    def __init__(self) -> None:
        self.closed = self.steps = 0

    def __aiter__(self) -> Closable:
        return self

    async def __anext__(self) -> str:
        self.steps += 1
        if self.steps > 1:
            await anyio.sleep_forever()
        return "a"

    async def aclose(self) -> None:
        await checkpoint()
        self.closed += 1


@OURS
@pytest.mark.parametrize("ends", ["disconnect", "drain", "scope"])
async def test_the_awaited_source_is_closed_once_on_every_way(make: Any, ends: str) -> None:
    """After it has begun, and if the stream is over at the moment when it comes."""
    for early in (True, False):
        source, shutdown, scope = Closable(), Shutdown(), anyio.CancelScope()
        began, comes = anyio.Event(), anyio.Event()

        async def factory() -> Closable:
            began.set()
            if early:
                with anyio.CancelScope(shield=True):
                    await comes.wait()
            return source

        app = in_a_scope(make(factory, shutdown=shutdown), scope)
        async with Plain(app) as server:
            await began.wait()
            if not early:
                await server.has(b"data: a")
            if ends == "disconnect":
                server.disconnect()
            elif ends == "drain":
                shutdown.drain()
            else:
                scope.cancel()
            await anyio.sleep(0.05)
            await anyio.wait_all_tasks_blocked()  # the watchdog may be as late as this is
            comes.set()
            await server.returns()
            assert server.error is None
        assert source.closed == 1, early
        if early:
            assert source.steps == 0


@OURS
async def test_a_factory_that_swallows_its_cancellation_and_returns_a_source(make: Any) -> None:
    source = Closable()
    began = anyio.Event()

    async def factory() -> Closable:
        began.set()
        try:
            await anyio.sleep_forever()
        except BaseException:  # it knows no better
            pass
        return source

    async with Plain(make(factory)) as server:
        await began.wait()
        server.disconnect()
        await server.returns()
    assert source.closed == 1


# -- that never begins -----------------------------------------------------------------------------


@OURS
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_factory_that_never_begins_gives_no_warning(make: Any, method: str) -> None:
    shutdown, began = Shutdown(), False
    shutdown.drain()

    async def factory() -> Any:
        nonlocal began
        began = True

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with Plain(
            make(factory, shutdown=shutdown, methods=["GET", "POST"]), method=method
        ) as server:
            await server.returns()
            assert server.status == (200 if method == "GET" else 503)
            assert server.complete
        gc.collect()
    assert not began
    assert [str(warning.message) for warning in caught] == []


# -- a request that comes too late, through every entry point --------------------------------------


@pytest.mark.usefixtures("through_every_entry_point")
@pytest.mark.parametrize("grace", [0, 5])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_request_that_comes_while_draining(method: str, grace: int) -> None:
    shutdown, recorder = Shutdown(), Recorder()
    shutdown.drain()
    asked: list[Exception] = []

    async def source() -> AsyncIterator[str]:
        recorder.cleanup_began = True
        yield "a"

    app = sse_app(
        source, shutdown=shutdown, shutdown_grace_period=grace, methods=["GET", "POST"],
        on_error=asked.append,
    )  # fmt: skip
    async with Plain(app, method=method) as server:
        await server.returns()
        assert server.error is None
        assert server.complete
        if method == "GET":
            assert server.status == 200
            assert server.body == b""
        else:
            assert server.status == 503
            assert server.headers[b"retry-after"] == b"5"
    assert asked == []
    assert not recorder.cleanup_began


@pytest.mark.parametrize("method", ["POST", "post", "Patch"])
@pytest.mark.parametrize("adapter", [True, False])
async def test_a_request_in_any_case_that_comes_while_draining(method: str, adapter: bool) -> None:
    shutdown = Shutdown()
    shutdown.drain()
    source = Closable()
    app: Any = (
        EventSourceResponse(source, shutdown=shutdown)
        if adapter
        else sse_app(lambda: source, shutdown=shutdown, methods=["POST", "PATCH"])
    )
    async with Plain(app, method=method) as server:
        await server.returns()
        assert server.status == 503
        assert server.headers[b"retry-after"] == b"5"
        assert server.complete
    assert source.closed == 1
    assert source.steps == 0


@pytest.mark.usefixtures("through_every_entry_point")
async def test_a_post_that_has_begun_ends_as_a_stream_does() -> None:
    shutdown, recorder = Shutdown(), Recorder()
    app = sse_app(
        lambda: recorder.source("a"),
        shutdown=shutdown,
        methods=["POST"],
        on_close=recorder.on_close,
    )
    async with Plain(app, method="POST") as server:
        await server.has(b"data: a")
        shutdown.drain()
        await server.returns()
        assert server.status == 200
        assert server.complete


# -- a status of a framework -----------------------------------------------------------------------


@OURS
@pytest.mark.parametrize("around", [True, False])
async def test_a_status_of_a_framework_stays_one_although_there_is_on_error(
    make: Any, around: bool
) -> None:
    """The framework answers, if it is around: the scope has its application."""
    errors: list[HTTPException] = [HTTPException(404), type("Mine", (HTTPException,), {})(418)]
    for error in errors:
        asked: list[Exception] = []

        async def source() -> AsyncIterator[str]:
            raise error
            yield "never"

        def sorry(exc: Exception, asked: list[Exception] = asked) -> str:
            asked.append(exc)
            return "sorry"

        app = make(source, on_error=sorry)

        async def framework(scope: Any, *exchange: Any, app: Any = app) -> None:
            await app({**scope, "app": object()} if around else scope, *exchange)

        async with Plain(framework) as server:
            await server.returns()
            assert server.error is (error if around else None)
            assert around or server.status == error.status_code
            assert not around or server.messages == []
        assert asked == []


@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
async def test_a_status_of_starlette_before_the_start_is_that_status(framework: str) -> None:
    from starlette.exceptions import HTTPException

    async def source() -> AsyncIterator[str]:
        raise HTTPException(404, "not here")
        yield "never"

    app = ENTRY_POINTS[framework](source, on_error=lambda exc: "sorry")
    async with Plain(app) as server:
        await server.returns()
        assert server.status == 404
        assert b"not here" in server.body


@OURS
async def test_what_is_no_status_is_on_errors(make: Any) -> None:
    """Another exception with such an attribute, one with such a name, and a late status."""

    class Teapot(Exception):
        status_code = 418

    class HTTPException(Exception):
        pass

    errors = [Teapot(), HTTPException()]
    for error in errors:

        async def source() -> AsyncIterator[str]:
            raise error
            yield "never"

        async with Plain(make(source, on_error=lambda exc: "sorry")) as server:
            await server.returns()
            assert server.error is None
            assert server.body == b"data: sorry\n\n"


@pytest.mark.usefixtures("through_every_entry_point")
async def test_a_status_after_the_start_is_an_error_like_any_other() -> None:
    async def source() -> AsyncIterator[str]:
        yield "a"
        raise HTTPException(404)

    async with Plain(sse_app(source, on_error=lambda exc: "sorry")) as server:
        await server.returns()
        assert server.error is None
        assert server.body == b"data: a\n\ndata: sorry\n\n"
