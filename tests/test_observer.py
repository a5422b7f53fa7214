"""What an observer of streams is told, and what the figures of a stream are."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import types
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from sse_asgi import (
    CloseReason,
    CloseReport,
    HTTPError,
    Observer,
    Shutdown,
    StreamOptions,
    StreamStats,
)
from sse_asgi import sse_app as only_sse_app
from sse_asgi.testing import connect

from .entry_points import ENTRY_POINTS
from .servers.harness import free_port
from .streams import http_scope, never, on_mock_clock

# Each test that says sse_app runs with every entry point.
pytestmark = pytest.mark.anyio


@pytest.fixture(params=ENTRY_POINTS)
def sse_app(request: pytest.FixtureRequest) -> Any:
    return ENTRY_POINTS[request.param]


class Recording(Observer):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.streams: list[StreamStats] = []
        self.reports: list[CloseReport] = []

    def stream_opened(self, stream: StreamStats) -> None:
        self.told.append("opened")
        self.streams.append(stream)

    def stream_first_event(self, stream: StreamStats) -> None:
        assert stream in self.streams
        assert stream.first_event is not None
        self.told.append("first event")

    def stream_draining(self, stream: StreamStats, reason: CloseReason) -> None:
        assert stream is self.streams[-1]
        self.told.append(f"draining: {reason.value}")

    def stream_closed(self, stream: StreamStats, report: CloseReport) -> None:
        assert stream in self.streams
        self.told.append(f"closed: {report.reason.value}")
        self.reports.append(report)

    @property
    def stream(self) -> StreamStats:
        (stream,) = self.streams
        return stream


async def two() -> AsyncIterator[str]:
    yield "a"
    await anyio.lowlevel.checkpoint()
    yield "b"


async def one_and_waits() -> AsyncIterator[str]:
    yield "a"
    await anyio.sleep_forever()


async def test_a_stream_from_its_beginning_to_its_end(sse_app: Any) -> None:
    seen = Recording()
    async with connect(sse_app(two, observer=seen), "/path?token=x") as stream:
        assert [event.data async for event in stream] == ["a", "b"]
    assert seen.told == ["opened", "first event", "closed: finished"]
    (report,) = seen.reports
    stats = seen.stream
    assert stats.events == report.events == 2
    assert stats.bytes == report.bytes >= len("data: a\n\ndata: b\n\n")  # it may be compressed
    assert stats.messages >= 2
    assert (stats.method, stats.path) == ("GET", "/path")
    assert stats.first_event is not None
    assert 0 <= stats.first_event <= report.duration
    assert not stats.draining
    assert not stats.pings


async def test_the_figures_are_there_while_the_stream_is_open(sse_app: Any) -> None:
    seen = Recording()
    async with connect(sse_app(one_and_waits, observer=seen)) as stream:
        await stream.receive()
        await anyio.wait_all_tasks_blocked()
        assert seen.told == ["opened"]
        assert seen.stream.events == 1
        assert seen.stream.bytes >= 9
        assert seen.stream.first_event is not None
    assert seen.told == ["opened", "first event", "closed: client_disconnected"]
    assert seen.stream.events == 1  # they stay


async def test_the_name_and_the_route() -> None:
    seen = Recording()
    names = {}
    for entry, make in ENTRY_POINTS.items():
        async with connect(make(two, observer=seen), "/x") as stream:
            await stream.read()
        names[entry] = seen.streams[-1].name, seen.streams[-1].route
    assert names["sse_app"] == (f"{__name__}.two", None)
    assert names["starlette"][0].endswith("entry_points.starlette_app.<locals>.route")
    assert names["fastapi"][0].endswith("entry_points.fastapi_app.<locals>.route")
    assert names["fastapi"][1] == "/{path:path}"


async def test_without_a_framework_a_response_has_the_name_of_its_content() -> None:
    from sse_asgi.starlette import EventSourceResponse

    seen = Recording()

    async def app(*exchange: Any) -> None:
        await EventSourceResponse(two(), observer=seen)(*exchange)

    async with connect(app) as stream:
        await stream.read()
    assert seen.stream.name == "two"


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "DELETE", "GET"])
async def test_what_is_no_stream_is_not_told(method: str) -> None:
    def refuses() -> Iterator[str]:
        raise HTTPError(403)

    seen = Recording()
    async with connect(only_sse_app(refuses, observer=seen), method=method) as stream:
        assert stream.status_code == {"HEAD": 200, "OPTIONS": 204, "DELETE": 405}.get(method, 403)
    assert not seen.told


async def test_a_refusal_at_the_first_step_is_no_stream(sse_app: Any) -> None:
    async def refuses() -> AsyncIterator[str]:
        raise HTTPError(403)
        yield ""

    seen = Recording()
    async with connect(sse_app(refuses, observer=seen)) as stream:
        assert stream.status_code == 403
    assert not seen.told


async def test_a_client_that_leaves_before_the_start_has_had_no_stream(sse_app: Any) -> None:
    seen = Recording()

    async def waits() -> AsyncIterator[str]:
        await anyio.sleep_forever()
        yield ""

    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    left = False

    async def leaves() -> Any:
        nonlocal left
        if not left:
            left = True
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.disconnect"}

    await sse_app(waits, observer=seen, defer_start=True)(http_scope(), leaves, send)
    assert [message["status"] for message in sent[:1]] == [499]
    assert not seen.told


async def test_an_exception_of_the_source(sse_app: Any) -> None:
    async def fails() -> AsyncIterator[str]:
        yield "a"
        await anyio.lowlevel.checkpoint()
        raise OSError("broken")

    seen = Recording()
    with pytest.raises(OSError, match="broken"):
        async with connect(sse_app(fails, observer=seen)) as stream:
            await stream.read()
    assert seen.told == ["opened", "first event", "closed: error"]
    assert isinstance(seen.reports[0].error, OSError)


async def test_a_shutdown(sse_app: Any) -> None:
    seen, shutdown = Recording(), Shutdown()
    app = sse_app(one_and_waits, observer=seen, shutdown=shutdown)
    async with connect(app) as stream:
        await stream.receive()
        shutdown.drain()
        await stream.read()
    # It is seen with the next message, which may be the end.
    assert sorted(seen.told) == ["closed: shutdown", "draining: shutdown", "first event", "opened"]
    assert (seen.told[0], seen.told[-1]) == ("opened", "closed: shutdown")
    assert seen.stream.draining


async def test_a_stream_that_drains_before_it_is_open(sse_app: Any) -> None:
    seen, shutdown = Recording(), Shutdown()

    async def source() -> AsyncIterator[str]:
        shutdown.drain()
        yield "last"

    app = sse_app(source, observer=seen, shutdown=shutdown, shutdown_grace_period=5)
    async with connect(app) as stream:
        await stream.read()
    assert (seen.told[0], seen.told[-1]) == ("opened", "closed: shutdown")
    assert len(seen.reports) == 1


@on_mock_clock
async def test_pings_and_the_time_that_send_has_waited() -> None:
    seen = Recording()
    app = only_sse_app(one_and_waits, ping=10, send_timeout=None, observer=seen)
    async with connect(app) as stream:
        await stream.receive()
        await anyio.sleep(35)
        assert seen.stream.pings == 3
        assert seen.stream.events == 1
        stream.stall()
        await anyio.sleep(50)
        assert seen.stream.blocked == pytest.approx(45, abs=10)  # of a send that waits now
        await anyio.sleep(50)
        stream.resume()
        await anyio.wait_all_tasks_blocked()
    assert seen.stream.blocked == pytest.approx(95, abs=10)


async def test_the_time_that_send_has_waited_never_goes_back() -> None:
    """Prometheus would take that for a restart. A send that does not wait is looked at, too."""
    seen = Recording()
    found: list[float] = []

    def look() -> None:
        found.extend(stream.blocked for stream in seen.streams)

    async def source() -> AsyncIterator[str]:
        for number in range(20):
            await anyio.lowlevel.checkpoint()
            look()
            yield str(number)

    async def send(message: Any) -> None:
        look()
        if len(found) % 8 == 0:
            await anyio.sleep(0.001)
        look()

    await only_sse_app(source, observer=seen)(http_scope(), never, send)
    look()
    assert found == sorted(found)
    assert len(found) > 40
    assert found[-1] > 0.001


@on_mock_clock
async def test_the_first_event_is_timed_from_the_request() -> None:
    async def late() -> AsyncIterator[str]:
        await anyio.sleep(7)
        yield "a"
        await anyio.sleep(7)
        yield "b"

    seen = Recording()
    async with connect(only_sse_app(late, ping=2, observer=seen)) as stream:
        await anyio.sleep(5)
        assert seen.stream.first_event is None
        await stream.receive()
        await stream.receive()
    assert seen.stream.first_event == pytest.approx(7)


@on_mock_clock
async def test_a_client_that_stops_reading() -> None:
    async def source() -> AsyncIterator[str]:
        yield "a"
        while True:
            yield "x" * 100_000
            await anyio.lowlevel.checkpoint()

    seen = Recording()
    async with connect(only_sse_app(source, send_timeout=3, observer=seen)) as stream:
        stream.stall()
        await anyio.sleep(60)
    assert (seen.told[0], seen.told[-1]) == ("opened", "closed: send_timeout")
    assert seen.stream.blocked >= 3  # of a send that has never returned


async def test_a_send_that_was_dropped_does_not_count() -> None:
    """Servers whose send is stepped once, and closed if it waits: it is made again."""
    from sse_asgi.servers.base import send_at_once
    from sse_asgi.supervisor.deadlines import Deadlines
    from sse_asgi.supervisor.life import Life
    from sse_asgi.supervisor.observed import Observed

    passes = False

    @types.coroutine
    def client() -> Iterator[None]:
        yield

    async def send(message: Any) -> None:
        if message.get("waits") and not passes:
            await client()

    class Response:
        clock = staticmethod(anyio.current_time)
        events = bytes = 0
        prompt = False  # the last one has waited
        observed: Any = None

        def __init__(self) -> None:
            self.send: Any = send

    response = Response()
    times = Deadlines(StreamOptions().timing, 0.0)
    observed = Observed(Observer(), http_scope(), "name", 0.0, response, Life(), times)
    await response.send({"type": "http.response.start"})
    assert send_at_once(response.send, {"type": "http.response.body"})
    assert not send_at_once(response.send, {"type": "http.response.body", "waits": True})
    assert observed.stats.messages == 1
    assert observed.stats.blocked == 0
    passes = True
    assert send_at_once(response.send, {"type": "http.response.body", "waits": True})
    assert observed.stats.messages == 2


class Broken(Observer):
    """Raises, wherever it is called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("stream_"):
            self.called.append(name)

            def raises(*args: Any) -> None:
                raise ZeroDivisionError(name)

            return raises
        return super().__getattribute__(name)


async def test_an_observer_that_raises_harms_nobody(
    sse_app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    broken, shutdown = Broken(), Shutdown()
    async with connect(sse_app(one_and_waits, observer=broken, shutdown=shutdown)) as stream:
        assert (await stream.receive()).data == "a"
        shutdown.drain()
        await stream.read()
        assert stream.complete
    methods = {"stream_opened", "stream_first_event", "stream_draining", "stream_closed"}
    assert set(broken.called) == methods
    assert len(broken.called) == 4
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} of the observer raised" for name in broken.called
    ]


async def test_an_observer_may_end_the_stream_that_it_is_told_of(sse_app: Any) -> None:
    shutdown = Shutdown()

    class Impatient(Recording):
        def stream_opened(self, stream: StreamStats) -> None:
            super().stream_opened(stream)
            shutdown.drain()

    seen = Impatient()
    async with connect(sse_app(one_and_waits, observer=seen, shutdown=shutdown)) as stream:
        await stream.read()
    assert seen.told[0] == "opened"
    assert seen.told[-1] == "closed: shutdown"
    assert len(seen.reports) == 1


request_id: ContextVar[str] = ContextVar("request_id")


async def test_it_is_called_in_the_context_of_the_request(sse_app: Any) -> None:
    found = []

    class Contextual(Observer):
        def stream_opened(self, stream: StreamStats) -> None:
            found.append(request_id.get())

        def stream_closed(self, stream: StreamStats, report: CloseReport) -> None:
            found.append(request_id.get())

    async def late() -> AsyncIterator[str]:
        request_id.set("changed by the source")
        await anyio.sleep(0.02)
        yield "a"

    app = sse_app(late, observer=Contextual(), defer_start=0.001)

    async def middleware(*exchange: Any) -> None:
        request_id.set("7")
        await app(*exchange)

    async with connect(middleware) as stream:
        await stream.read()
    assert found == ["7", "7"]


async def test_two_applications_with_one_observer_are_cut_at_every_point() -> None:
    """However a stream ends, what was opened is closed, once."""
    seen = Recording()

    async def source() -> AsyncIterator[str]:
        for number in range(3):
            yield str(number)
            await anyio.lowlevel.checkpoint()
        raise ValueError("broken")

    apps = [only_sse_app(source, observer=seen), only_sse_app(two, observer=seen, ping=0.001)]
    starts = 0
    for app in apps:
        for point in range(6):
            for how in ("send raises", "cancelled"):
                count = 0
                scope = anyio.CancelScope()

                async def send(
                    message: Any, point: int = point, how: str = how, scope: Any = scope
                ) -> None:
                    nonlocal count, starts
                    count += 1
                    if count > point:
                        if how == "send raises":
                            raise OSError
                        scope.cancel()
                        await anyio.lowlevel.checkpoint()
                    starts += message["type"] == "http.response.start"

                with scope:
                    try:
                        await app(http_scope(), never, send)
                    except ValueError:
                        pass
    told = Counter(what.partition(":")[0] for what in seen.told)
    assert told["opened"] == told["closed"] == starts > 10
    assert len(set(map(id, seen.streams))) == starts


def test_streams_in_several_event_loops(caplog: pytest.LogCaptureFixture) -> None:
    seen = Recording()
    app = only_sse_app(two, observer=seen)

    async def several() -> None:
        for _ in range(20):
            async with connect(app) as stream:
                await stream.read()

    threads = [
        threading.Thread(target=anyio.run, args=(several,), kwargs={"backend": backend})
        for backend in ("asyncio", "trio", "asyncio")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(seen.told) == {"opened": 60, "first event": 60, "closed: finished": 60}
    assert sum(stats.events for stats in seen.streams) == 120


def test_on_uvicorn() -> None:
    """Its send is called at once, without a task."""
    import uvicorn

    seen = Recording()

    async def source() -> AsyncIterator[str]:
        for number in range(100):
            yield str(number)
            await asyncio.sleep(0)

    app = only_sse_app(source, observer=seen)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", lifespan="off"))

    async def main() -> None:
        serving = asyncio.ensure_future(server.serve())
        async with httpx.AsyncClient(trust_env=False) as client:
            while not server.started:
                await asyncio.sleep(0.01)
            response = await client.get(f"http://127.0.0.1:{port}/")
        assert response.text.count("data: ") == 100
        server.should_exit = True
        await serving

    asyncio.run(main())
    assert seen.told == ["opened", "first event", "closed: finished"]
    assert seen.stream.events == 100
    assert seen.stream.bytes == seen.reports[0].bytes > 0
    assert 1 <= seen.stream.messages <= 103
    assert math.isfinite(seen.stream.blocked)


async def test_no_cycle_is_left_for_the_collector(sse_app: Any) -> None:
    def observed() -> int:
        return sum(type(each).__name__ == "Observed" for each in gc.get_objects())

    app = sse_app(two, observer=Recording())
    gc.collect()
    gc.disable()
    try:
        before = observed()  # tracebacks in the log of other tests have some
        async with connect(app) as stream:
            await stream.read()
        assert observed() == before
    finally:
        gc.enable()


async def test_a_factory_that_refuses_leaves_no_cycle() -> None:
    def left() -> int:
        kinds = ("Observed", "Response")
        return sum(
            type(each).__name__ in kinds and type(each).__module__.startswith("sse_asgi.")
            for each in gc.get_objects()
        )

    async def refuses() -> AsyncIterator[str]:
        await anyio.lowlevel.checkpoint()
        raise HTTPError(403)

    app = only_sse_app(refuses, observer=Recording())
    gc.collect()
    gc.disable()
    try:
        before = left()
        for _ in range(10):
            async with connect(app) as stream:
                assert stream.status_code == 403
        assert left() < before + 10
    finally:
        gc.enable()


@pytest.mark.parametrize("wrong", [Observer, object(), "metrics", lambda stream: None])
def test_what_is_no_observer_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="observer must be an Observer or None, not"):
        only_sse_app(two, observer=wrong)


def test_a_method_that_nobody_would_await_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Late.stream_closed must be a plain function"):

        class Late(Observer):
            async def stream_closed(self, stream: StreamStats, report: CloseReport) -> None:  # type: ignore[override]
                await anyio.lowlevel.checkpoint()
