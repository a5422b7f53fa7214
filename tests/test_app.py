"""The application: factories, methods, options, limits, lifespan; and what is left of it all."""

from __future__ import annotations

import functools
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from asgi_lifespan import LifespanManager

from sse_asgi import (
    CloseReason,
    HTTPError,
    ServerSentEvent,
    Shutdown,
    SSEApp,
    SSERequest,
    StreamOptions,
    current_thread_limiter,
    sse_app,
)
from sse_asgi.testing import connect

from .streams import Recorder, http_scope, never

pytestmark = pytest.mark.anyio


async def events_of(app: SSEApp, path: str = "/", **kwargs: Any) -> list[str]:
    async with connect(app, path, **kwargs) as stream:
        return [event.data async for event in stream]


# -- factories -------------------------------------------------------------------------------------


async def async_generator(request: SSERequest) -> AsyncIterator[str]:
    yield request.path


def sync_generator(request: SSERequest) -> Iterator[str]:
    yield request.path


async def coroutine(request: SSERequest) -> AsyncIterator[str]:
    await anyio.lowlevel.checkpoint()
    return async_generator(request)


class Factory:
    def __call__(self, request: SSERequest) -> list[str]:
        return [request.path]

    async def method(self, request: SSERequest) -> AsyncIterator[str]:
        yield request.path


FACTORIES: list[Any] = [
    async_generator,
    sync_generator,
    coroutine,
    lambda request: async_generator(request),
    lambda request: sync_generator(request),
    lambda request: (request.path,),
    Factory(),
    Factory().method,
    functools.partial(async_generator),
]


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: type(factory).__name__)
async def test_every_kind_of_factory(factory: Any) -> None:
    assert await events_of(sse_app(factory), "/a%20b?c=d") == ["/a b"]


async def test_a_factory_may_take_no_argument() -> None:
    async def source() -> AsyncIterator[str]:
        yield "nothing"

    assert await events_of(sse_app(source)) == ["nothing"]
    assert await events_of(sse_app(lambda: ["a", "b"])) == ["a", "b"]


async def test_a_decorator_with_and_without_options() -> None:
    @sse_app
    async def plain(request: SSERequest) -> AsyncIterator[str]:
        yield "plain"

    @sse_app(retry=7, sep="\r\n")
    async def configured() -> AsyncIterator[str]:
        yield "configured"

    assert isinstance(plain, SSEApp)
    assert isinstance(configured, SSEApp)
    assert configured.options == StreamOptions(retry=7, sep="\r\n")
    assert await events_of(plain) == ["plain"]
    assert await events_of(configured) == ["configured"]
    assert repr(plain) == "sse_app(test_a_decorator_with_and_without_options.<locals>.plain)"


async def test_parameters_with_defaults_are_the_factorys_own() -> None:
    async def source(interval: float = 0.5) -> AsyncIterator[str]:
        yield str(interval)

    async def optional(request: Any = None) -> AsyncIterator[str]:
        yield type(request).__name__

    async def anything(*args: Any, **kwargs: Any) -> AsyncIterator[str]:
        yield type(args[0]).__name__

    assert await events_of(sse_app(source)) == ["0.5"]
    assert await events_of(sse_app(optional)) == ["ReceivedRequest"]
    assert await events_of(sse_app(anything)) == ["ReceivedRequest"]


@pytest.mark.parametrize("factory", [None, 5, "text", ["a"]])
def test_a_factory_that_is_not_callable_is_refused(factory: Any) -> None:
    with pytest.raises(TypeError, match="factory must be a generator function"):
        sse_app(factory)


def test_a_factory_with_too_many_parameters_is_refused() -> None:
    def factory(request: SSERequest, other: int) -> list[str]:
        return []

    with pytest.raises(TypeError, match=r"must take the request, or nothing: .*other"):
        sse_app(factory)


@pytest.mark.parametrize("source", [None, 5, "text", b"bytes", {"data": "x"}, object()])
async def test_a_source_that_is_no_iterable_of_events_is_refused_before_the_start(
    source: Any,
) -> None:
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    with pytest.raises(TypeError, match="must be an async iterable or an iterable"):
        await sse_app(lambda: source)(http_scope(), never, send)
    assert messages == []


async def test_an_http_error_in_the_factory() -> None:
    async def factory(request: SSERequest) -> AsyncIterator[str]:
        await anyio.lowlevel.checkpoint()
        raise HTTPError(401, headers={"www-authenticate": "Bearer"})

    async with connect(sse_app(factory)) as stream:
        assert stream.status_code == 401
        assert stream.headers["www-authenticate"] == "Bearer"
        assert await stream.read() == b"Unauthorized"


def test_http_errors() -> None:
    assert str(HTTPError(404)) == "404 Not Found"
    assert str(HTTPError(499)) == "499"
    for wrong in (100, 600, "404", None):
        with pytest.raises(ValueError, match="status_code must be"):
            HTTPError(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="detail must be a str or None, not 5"):
        HTTPError(404, 5)  # type: ignore[arg-type]


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("ping", -1, ValueError),
        ("ping", "15", TypeError),
        ("ping", True, TypeError),
        ("ping", float("nan"), ValueError),
        ("ping", float("inf"), ValueError),
        ("ping_message_factory", "ping", TypeError),
        ("sep", "\n\n", ValueError),
        ("sep", None, ValueError),
        ("headers", 5, TypeError),
        ("headers", "a: b", TypeError),
        ("headers", [("a", "b", "c")], TypeError),
        ("headers", {"a": 5}, TypeError),
        ("headers", {"a b": "c"}, ValueError),
        ("headers", {"": "c"}, ValueError),
        ("headers", {"a": "b\r\nc: d"}, ValueError),
        ("headers", {"a": "☃"}, ValueError),
        ("headers", {"Content-Length": "5"}, ValueError),
        ("retry", -1, ValueError),
        ("retry", 1.5, TypeError),
        ("send_timeout", 0, ValueError),
        ("send_timeout", "1", TypeError),
        ("cleanup_timeout", -1, ValueError),
        ("shutdown", "now", TypeError),
        ("shutdown_grace_period", None, TypeError),
        ("shutdown_grace_period", -1, ValueError),
        ("max_lifetime", 0, ValueError),
        ("limit", 5, TypeError),
        ("recheck", 5, TypeError),
        ("recheck_every", 0, ValueError),
        ("recheck_every", "1", TypeError),
        ("recheck_every", None, TypeError),
        ("max_connections", 0, ValueError),
        ("max_connections", 1.5, TypeError),
        ("max_connections", True, TypeError),
        ("max_body", -1, ValueError),
        ("max_body", 1.5, TypeError),
        ("max_body", True, TypeError),
        ("max_body", "1 MiB", TypeError),
        ("methods", (), ValueError),
        ("methods", "GET", TypeError),
        ("methods", ["G T"], ValueError),
        ("methods", [5], TypeError),
        ("defer_start", -1, ValueError),
        ("defer_start", "yes", TypeError),
        ("compression", 1, TypeError),
        ("compression", b"gzip", TypeError),
        ("compression", {"gzip": 6}, TypeError),
        ("compression", "deflate", ValueError),
        ("compression", [], ValueError),
        ("on_error", 5, TypeError),
        ("on_close", 5, TypeError),
        ("lifespan", 5, TypeError),
    ],
)
def test_a_wrong_option_is_refused_with_its_name_and_value(
    option: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error) as refused:
        sse_app(async_generator, **{option: value})
    message = str(refused.value)
    assert option in message
    # Of a collection, the part that is wrong.
    parts = [value, *value, *value.values()] if isinstance(value, dict) else [value]
    parts += value if isinstance(value, list) else []
    assert any(repr(part) in message for part in parts) or value == ()


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match=r"sse_app\(\) has no option 'pong'"):
        sse_app(async_generator, pong=5)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("ping", "0 means no pings"),
        ("send_timeout", "None means no limit"),
        ("cleanup_timeout", "None means no limit"),
        ("max_lifetime", "None means no limit"),
        ("defer_start", "True means no limit"),
    ],
)
def test_who_wants_no_limit_is_told_how_to_say_so(option: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be .* not inf: {hint}$"):
        StreamOptions(**{option: float("inf")})  # type: ignore[arg-type]
    said = {"0": 0, "None": None, "True": True}[hint.split()[0]]
    StreamOptions(**{option: said})  # type: ignore[arg-type]


def test_the_signature_shows_every_option() -> None:
    import dataclasses
    import inspect

    parameters = inspect.signature(sse_app).parameters
    options = [field for field in dataclasses.fields(StreamOptions) if field.init]
    assert list(parameters) == ["factory", *(option.name for option in options)]
    for option in options:
        assert parameters[option.name].default == option.default
        assert parameters[option.name].kind is inspect.Parameter.KEYWORD_ONLY


async def test_headers() -> None:
    async with connect(sse_app(lambda: ["a"])) as stream:
        assert stream.headers == {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache, no-transform",
            "x-accel-buffering": "no",
        }


@pytest.mark.parametrize(
    "headers",
    [
        {"Cache-Control": "no-store", "X-Mine": "ä", "Connection": "keep-alive"},
        [("cache-control", "no-store"), ("x-mine", "ä"), ("transfer-encoding", "chunked")],
        [(b"Cache-Control", b"no-store"), (b"x-mine", b"\xe4"), (b"Keep-Alive", b"5")],
    ],
)
async def test_own_headers_win_and_hop_by_hop_fields_are_dropped(headers: Any) -> None:
    """Regression 19: HTTP/2 forbids them (hologram#1262, ktor#4581)."""
    async with connect(sse_app(lambda: ["a"], headers=headers)) as stream:
        assert stream.headers == {
            "content-type": "text/event-stream; charset=utf-8",
            "x-accel-buffering": "no",
            "cache-control": "no-store",
            "x-mine": "ä",
        }


async def test_a_header_may_come_more_than_once() -> None:
    app = sse_app(list, headers=[("set-cookie", "a=1"), ("set-cookie", "b=2")])
    assert app.options.response_headers[-2:] == [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]


async def test_sep_is_used_for_everything() -> None:
    sent = bytearray()

    async def send(message: Any) -> None:
        sent.extend(message.get("body", b""))

    app = sse_app(lambda: ["a", {"data": "b\nc", "id": 1}], sep="\r\n", retry=5)
    await app(http_scope(), never, send)
    assert bytes(sent) == (b"retry: 5\r\n\r\ndata: a\r\n\r\nid: 1\r\ndata: b\r\ndata: c\r\n\r\n")


# -- methods, limits, scopes -----------------------------------------------------------------------


async def test_head_answers_the_headers_and_starts_nothing() -> None:
    """Regression 12: sse-starlette#218."""

    def factory() -> Any:
        raise AssertionError("started")

    async with connect(sse_app(factory, headers={"x-mine": "y"}), method="HEAD") as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["x-mine"] == "y"
        assert [event async for event in stream] == []
        assert stream.complete
    async with connect(sse_app(factory, methods=["GET", "HEAD"]), method="HEAD") as stream:
        assert [event async for event in stream] == []
        assert stream.complete


async def test_options_and_other_methods() -> None:
    app = sse_app(lambda: ["a"])
    async with connect(app, method="OPTIONS") as stream:
        assert stream.status_code == 204
        assert stream.headers == {"allow": "GET, HEAD, OPTIONS"}
    async with connect(app, method="POST") as stream:
        assert stream.status_code == 405
        assert stream.headers["allow"] == "GET, HEAD, OPTIONS"


async def test_methods() -> None:
    app = sse_app(lambda request: [request.method], methods=["post", "QUERY"])
    assert await events_of(app, method="POST", body=b"x") == ["POST"]
    assert await events_of(app, method="QUERY") == ["QUERY"]
    for method in ("GET", "HEAD"):
        async with connect(app, method=method) as stream:
            assert stream.status_code == 405
            assert stream.headers["allow"] == "OPTIONS, POST, QUERY"


async def test_max_connections() -> None:
    recorder = Recorder()
    app = sse_app(lambda: recorder.source("a"), max_connections=2)
    async with connect(app) as first, connect(app) as second:
        assert app.connections == 2
        async with connect(app) as third:
            assert third.status_code == 503
            assert int(third.headers["retry-after"]) > 0
        assert (first.status_code, second.status_code) == (200, 200)
        await first.disconnect()
        async with connect(app) as fourth:
            assert fourth.status_code == 200
    assert app.connections == 0


async def test_websockets_are_refused() -> None:
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    await sse_app(list)({"type": "websocket", "path": "/", "headers": []}, never, send)
    assert messages == [{"type": "websocket.close", "code": 1000}]


async def test_an_unknown_scope_is_an_error() -> None:
    with pytest.raises(ValueError, match="'carrier-pigeon'"):
        await sse_app(list)({"type": "carrier-pigeon"}, never, never)  # type: ignore[arg-type]


async def test_lifespan_is_answered() -> None:
    async with LifespanManager(sse_app(lambda: ["a"])) as manager:
        assert manager._state == {}


async def test_lifespan_runs_a_context_manager() -> None:
    phases: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
        assert isinstance(app, SSEApp)
        phases.append("up")
        yield {"database": "there"}
        phases.append("down")

    app = sse_app(lambda request: [request.state["database"]], lifespan=lifespan)
    async with LifespanManager(app) as manager:
        assert phases == ["up"]
        assert await events_of(manager.app) == ["there"]  # type: ignore[arg-type]
    assert phases == ["up", "down"]


@pytest.mark.parametrize("phase", ["startup", "shutdown"])
async def test_a_lifespan_that_fails_says_so(phase: str) -> None:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        if phase == "startup":
            raise LookupError("no database")
        yield
        raise LookupError("no database")

    sent: list[Any] = []
    incoming = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> Any:
        return {"type": next(incoming)}

    async def send(message: Any) -> None:
        sent.append(message)

    app = sse_app(list, lifespan=lifespan)
    with pytest.raises(LookupError):
        await app({"type": "lifespan", "state": {}}, receive, send)
    assert sent[-1]["type"] == f"lifespan.{phase}.failed"
    assert "no database" in sent[-1]["message"]


# -- sync sources ----------------------------------------------------------------------------------


async def test_a_sync_source_runs_in_one_context_off_the_event_loop() -> None:
    """Regression 17 for threads: a token is good in the context in which it was made."""
    var: ContextVar[str] = ContextVar("var", default="unset")
    loop_thread = threading.get_ident()
    seen: list[Any] = []

    def source() -> Iterator[str]:
        token = var.set("inside")
        try:
            yield var.get()
            assert threading.get_ident() != loop_thread
            yield var.get()
        finally:
            seen.append(threading.get_ident() != loop_thread)
            var.reset(token)
            seen.append(var.get())

    assert await events_of(sse_app(source)) == ["inside", "inside"]
    async with connect(sse_app(source)) as stream:
        await stream.receive()
    assert seen == [True, "unset", True, "unset"]


async def test_sync_sources_whose_clients_leave_release_their_threads() -> None:
    """Regression 14: django-bolt#25, daf_butler#1023."""
    closed: list[bool] = []
    waiting = 0
    loop_thread = threading.get_ident()
    release = threading.Event()

    def source() -> Iterator[str]:
        nonlocal waiting
        try:
            yield "a"
            waiting += 1
            release.wait(20)
            yield "b"
        finally:
            closed.append(threading.get_ident() != loop_thread)

    app = sse_app(source, cleanup_timeout=0.05)
    limiter = current_thread_limiter()
    count = 200

    async def client() -> None:
        async with connect(app) as stream:
            await stream.receive()
            while waiting < count:
                await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(client)
        # The event loop is free meanwhile: this stream goes through.
        assert await events_of(sse_app(lambda: ["other"])) == ["other"]
    # The clients are gone, and the apps have returned; the threads still wait, and count.
    assert limiter.borrowed_tokens == count
    release.set()
    with anyio.fail_after(20):
        while limiter.borrowed_tokens:
            await anyio.sleep(0.01)
    assert closed == [True] * count


class Blocked:
    """An iterator that can't be closed, and blocks at its second step."""

    def __init__(self) -> None:
        self.steps = 0
        self.release = threading.Event()

    def __iter__(self) -> Blocked:
        return self

    def __next__(self) -> str:
        self.steps += 1
        if self.steps > 1:
            self.release.wait(20)
        return str(self.steps)


async def test_an_iterator_without_close_keeps_its_place_while_its_thread_runs() -> None:
    limiter = current_thread_limiter()
    limiter.total_tokens = 1
    blocked = Blocked()
    app = sse_app(lambda: blocked, cleanup_timeout=0.02)
    async with connect(app) as stream:
        assert (await stream.receive()).data == "1"
        while blocked.steps < 2:
            await anyio.sleep(0.001)
    assert stream.returned
    for _ in range(3):
        await anyio.sleep(0.01)
        assert limiter.borrowed_tokens == 1
        async with connect(app) as another:
            assert another.status_code == 503
    blocked.release.set()
    with anyio.fail_after(20):
        while limiter.borrowed_tokens:
            await anyio.sleep(0.01)
    assert blocked.steps == 2
    assert await events_of(sse_app(lambda: ["a"])) == ["a"]


class NeverRead:
    closed = False

    def __iter__(self) -> Iterator[str]:
        raise AssertionError

    def close(self) -> None:
        self.closed = True


async def test_no_thread_left_is_a_503() -> None:
    limiter = current_thread_limiter()
    limiter.total_tokens = 2
    release = threading.Event()

    def source() -> Iterator[str]:
        yield "a"
        release.wait(20)

    app = sse_app(source)
    async with connect(app) as first, connect(app) as second:
        await first.receive()
        await second.receive()
        async with connect(app) as third:
            assert third.status_code == 503
            assert "retry-after" in third.headers
        unread = NeverRead()
        async with connect(sse_app(lambda: unread)) as fourth:
            assert fourth.status_code == 503
        assert unread.closed
        assert await events_of(sse_app(async_generator)) == ["/"]  # others are not concerned
        release.set()
    assert limiter.borrowed_tokens == 0
    assert await events_of(app) == ["a"]


async def test_a_sync_source_is_never_begun_when_its_stream_is_over() -> None:
    begun = closed = 0

    def source() -> Iterator[str]:
        nonlocal begun, closed
        begun += 1
        try:
            yield "a"
        finally:
            closed += 1

    gone = anyio.Event()

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    app = sse_app(source)
    for iterations in range(30):
        gone = anyio.Event()
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(app, http_scope(), receive, send)
            for _ in range(iterations):
                await anyio.lowlevel.checkpoint()
            gone.set()
        assert begun == closed
    await anyio.sleep(0.05)
    assert begun == closed


async def test_an_iterator_that_was_never_stepped_is_closed() -> None:
    class Lines:
        closed = False

        def __iter__(self) -> Lines:
            return self

        def __next__(self) -> str:
            return "line"

        def close(self) -> None:
            self.closed = True

    lines = Lines()
    shutdown = Shutdown()
    shutdown.drain()
    assert await events_of(sse_app(lambda: lines, shutdown=shutdown)) == []
    assert lines.closed


async def test_an_error_in_a_sync_source_leaves_as_itself() -> None:
    def source() -> Iterator[str]:
        yield "a"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        async with connect(sse_app(source)) as stream:
            await stream.receive()
            await stream.receive()


async def test_a_sync_source_may_yield_anything_that_is_an_event() -> None:
    events: list[Any] = [b"", "a", {"data": 1}, ServerSentEvent("b"), b"data: c\n\n"]
    assert await events_of(sse_app(lambda: events)) == ["a", "1", "b", "c"]


async def test_a_slow_sync_source_does_not_stop_anything() -> None:
    def source() -> Iterator[str]:
        yield "a"
        time.sleep(0.2)
        yield "b"

    ticks = 0
    async with connect(sse_app(source, ping=0.02)) as stream:
        await stream.receive()
        while not stream._events:
            ticks += 1
            await anyio.sleep(0.005)
        assert (await stream.receive()).data == "b"
        assert len(stream.comments) > 1
    assert ticks > 5


# -- nothing is left behind ------------------------------------------------------------------------


async def test_a_thousand_connections_then_none() -> None:
    """Regression 3: sse-starlette#152, #142."""
    sources: list[weakref.ref[Any]] = []
    requests: list[weakref.ref[Any]] = []
    open_streams = 0
    tasks_before = len(anyio.get_running_tasks())

    async def source(request: SSERequest) -> AsyncIterator[str]:
        nonlocal open_streams
        requests.append(weakref.ref(request))
        open_streams += 1
        try:
            yield "a"
            await anyio.sleep_forever()
        finally:
            open_streams -= 1

    def factory(request: SSERequest) -> AsyncIterator[str]:
        made = source(request)
        sources.append(weakref.ref(made))
        return made

    app = sse_app(factory)
    leave = anyio.Event()
    arrived = 0

    async def client() -> None:
        nonlocal arrived
        async with connect(app) as stream:
            await stream.receive()
            arrived += 1
            await leave.wait()

    async with anyio.create_task_group() as tasks:
        for _ in range(1000):
            tasks.start_soon(client)
        while arrived < 1000:
            await anyio.sleep(0.01)
        # A client's task, the application's and the watchdog, nothing else, and nothing shared.
        assert len(anyio.get_running_tasks()) - tasks_before == 3 * 1000
        leave.set()
    assert open_streams == 0
    assert app.connections == 0
    assert len(anyio.get_running_tasks()) == tasks_before
    gc.collect()
    assert [ref for ref in sources + requests if ref() is not None] == []


@pytest.mark.parametrize("leaves", [False, True], ids=["finished", "its client leaves"])
@pytest.mark.parametrize("recheck", [None, bool], ids=["", "recheck"])
async def test_a_stream_is_freed_without_the_garbage_collector(leaves: bool, recheck: Any) -> None:
    refs: list[weakref.ref[Any]] = []

    class Local:
        """Something of the source's own."""

    async def source(request: SSERequest) -> AsyncIterator[str]:
        local = Local()
        refs.append(weakref.ref(local))
        refs.append(weakref.ref(request._stream))
        yield "a"
        if leaves:
            await anyio.sleep_forever()

    gc.collect()
    gc.disable()
    try:
        async with connect(sse_app(source, recheck=recheck)) as stream:
            assert (await stream.receive()).data == "a"
            if not leaves:
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()
        del stream
        await anyio.lowlevel.checkpoint()
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


def test_applications_serve_several_event_loops(anyio_backend: str) -> None:
    """Regression 4: sse-starlette#135, #59. One app, loops one after another and in threads."""
    recorder = Recorder()
    app = sse_app(lambda: recorder.source("a"), on_close=recorder.on_close, max_connections=50)

    async def client() -> None:
        async with connect(app) as stream:
            assert stream.status_code == 200
            await stream.receive()
            await anyio.sleep(0.01)

    errors: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(3):
                anyio.run(client, backend=anyio_backend)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run) for _ in range(5)]
    for thread in threads:
        thread.start()
    run()
    for thread in threads:
        thread.join()
    assert errors == []
    assert app.connections == 0
    assert len(recorder.reports) == 18
    assert {report.reason for report in recorder.reports} == {CloseReason.CLIENT_DISCONNECTED}
