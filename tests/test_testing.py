"""The in-process client, against applications that are written out by hand."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sse_asgi import SSERequest, sse_app
from sse_asgi.decoder import DEFAULT_MAX_EVENT_SIZE
from sse_asgi.errors import EventTooLargeError
from sse_asgi.testing import connect

from .peers import missing

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[1]

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"Content-Type", b"text/event-stream"), (b"x-one", b"\xe4")],
}


def body(data: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def test_the_scope() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend((scope, await receive()))
        await send(START)
        await send(body(b"", False))

    headers = {"X-One": "1", "X-Two": "ä"}
    async with connect(
        app, "/a%20b?c=%20", method="post", headers=headers, body=b"in", scope={"extra": 5}
    ):
        pass
    scope, message = seen
    assert scope["method"] == "POST"
    assert scope["path"] == "/a b"
    assert scope["raw_path"] == b"/a%20b"
    assert scope["query_string"] == b"c=%20"
    assert scope["headers"] == [(b"host", b"testserver"), (b"x-one", b"1"), (b"x-two", b"\xe4")]
    assert scope["extra"] == 5
    assert message == {"type": "http.request", "body": b"in", "more_body": False}


async def test_events_and_comments_however_they_are_cut() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        for byte in b": ping\nretry: 7\nevent: x\nid: 5\ndata: a\ndata: b\n\ndata: c\n\ndata: lost":
            await send(body(bytes([byte])))
        await send(body(b"", False))

    async with connect(app) as stream:
        assert stream.status_code == 200
        assert stream.headers == {"content-type": "text/event-stream", "x-one": "ä"}
        event = await stream.receive()
        assert (event.event, event.data, event.id) == ("x", "a\nb", "5")
        assert [event.data async for event in stream] == ["c"]
        assert stream.comments == ["ping"]
        assert stream.last_event_id == "5"
        assert stream.reconnection_time == 7
        assert stream.complete
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()


async def test_an_error_before_the_start_is_raised_on_entering() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("early")

    with pytest.raises(KeyError, match="early"):
        async with connect(app):
            raise AssertionError("entered")


async def test_an_application_without_an_answer() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

    with pytest.raises(anyio.IncompleteRead):
        async with connect(app):
            raise AssertionError("entered")


async def test_an_error_comes_once_after_the_events_before_it() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"data: a\n\n"))
        raise KeyError("late")

    async with connect(app) as stream:
        assert (await stream.receive()).data == "a"
        with pytest.raises(KeyError, match="late"):
            await stream.receive()
        assert stream.returned
    with pytest.raises(KeyError, match="late"):
        async with connect(app) as stream:
            pass


async def test_a_response_that_is_broken_off_is_no_end() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)

    async with connect(app) as stream:
        with pytest.raises(anyio.IncompleteRead):
            await stream.receive()
        with pytest.raises(anyio.IncompleteRead):
            await stream.read()
        assert not stream.complete


async def test_other_responses_can_be_read() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send(body(b"tea"))
        await send({"type": "http.response.body", "body": b"pot"})

    async with connect(app) as stream:
        assert stream.status_code == 418
        assert await stream.read() == b"teapot"


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_disconnect(spec_version: str) -> None:
    log: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        log.append(await receive())
        try:
            await send(body(b"data: into the void\n\n"))
        except OSError:
            log.append("OSError")
        await anyio.sleep(0.01)
        log.append("returned")

    asgi = {"version": "3.0", "spec_version": spec_version}
    async with connect(app, scope={"asgi": asgi}) as stream:
        assert log == []
        await stream.disconnect()
        raised = ["OSError"] if spec_version == "2.4" else []
        assert log == [{"type": "http.disconnect"}, *raised, "returned"]
        assert [event async for event in stream] == []


async def test_a_client_that_stops_reading() -> None:
    sent: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        for number in range(3):
            await send(body(b"data: %d\n\n" % number, number < 2))
            sent.append(number)

    async with connect(app) as stream:
        stream.stall()
        await anyio.wait_all_tasks_blocked()
        stalled_at = len(sent)
        assert stalled_at < 3
        stream.resume()
        assert [event.data async for event in stream] == ["0", "1", "2"]


async def test_what_is_not_read_is_bounded() -> None:
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send(START)
        while True:
            await send(body(b"data: %s\n\n" % (b"x" * 1000)))
            sent += 1
            if sent == 200:
                return

    async with connect(app) as stream:
        await anyio.wait_all_tasks_blocked()
        assert 60 < sent < 70
        for _ in range(10):
            await stream.receive()
        await anyio.wait_all_tasks_blocked()
        assert 70 < sent < 80


async def test_the_applications_error_does_not_hide_the_tests() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await receive()
        await receive()

    with pytest.raises(LookupError, match="of the test"):
        async with connect(app):
            raise LookupError("of the test")


async def test_cancelling_the_test_cancels_the_application() -> None:
    ended = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal ended
        await send(START)
        try:
            await anyio.sleep_forever()
        finally:
            ended = True

    with anyio.move_on_after(0.05):
        async with connect(app) as stream:
            await stream.receive()
    assert ended


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([body(b"x")], "has not started"),
        ([START, START], "has started already"),
        ([START, body(b"", False), body(b"x")], "is complete"),
        ([{"type": "http.nonsense"}], "unexpected ASGI message 'http.nonsense'"),
    ],
    ids=["early", "twice", "late", "nonsense"],
)
async def test_an_application_that_breaks_the_protocol_is_told(
    messages: list[Any], error: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    with pytest.raises(RuntimeError, match=error):
        async with connect(app):
            await anyio.wait_all_tasks_blocked()


# In more than one task. See pytest-asyncio#1191: it enters a fixture in one, and leaves it in
# another.


async def in_a_task(function: Callable[[], Awaitable[object]]) -> None:
    async def call() -> None:
        await function()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)


async def numbers(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    for number in range(1000):
        await send(body(b"data: %d\n\n" % number))
        await anyio.sleep(0.001)


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
async def test_a_connection_is_entered_in_one_task_and_left_in_another(fails: bool) -> None:
    ended = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal ended
        await receive()
        await send(START)
        await send(body(b"data: 0\n\n"))
        await receive()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
        ended = True
        if fails:
            raise KeyError("late")

    tasks = len(anyio.get_running_tasks())
    stream = connect(app)
    await in_a_task(stream.__aenter__)
    assert (await stream.receive()).data == "0"
    with anyio.move_on_after(0.01) as scope:  # a scope of this task is not one of the connection
        await stream.receive()
    assert scope.cancelled_caught
    assert not ended
    with pytest.raises(ExceptionGroup) if fails else contextlib.nullcontext() as caught:
        await in_a_task(partial(stream.__aexit__, None, None, None))
    if caught is not None:
        assert [type(exc) for exc in caught.value.exceptions] == [KeyError]
    assert ended
    assert len(anyio.get_running_tasks()) == tasks


async def test_a_connection_that_is_left_by_an_error_in_another_task_is_cancelled() -> None:
    stream = connect(numbers)
    await in_a_task(stream.__aenter__)
    error = LookupError()
    await in_a_task(partial(stream.__aexit__, LookupError, error, None))
    assert stream.returned
    assert not stream.complete


async def test_connections_are_left_in_the_order_in_which_they_were_entered() -> None:
    """Task groups and scopes would have to be left in the reverse order."""
    first, second = connect(numbers), connect(numbers)
    for stream in (first, second):
        await stream.__aenter__()
    await first.__aexit__(None, None, None)
    for number in range(5):
        assert (await second.receive()).data == str(number)
    await second.__aexit__(None, None, None)


async def test_a_fixture_that_yields_a_connection() -> None:
    """An async generator whose two steps are taken by two tasks."""

    @contextlib.asynccontextmanager
    async def fixture() -> AsyncIterator[Any]:
        async with connect(numbers) as stream:
            yield stream

    streams: list[Any] = []
    made = fixture()

    async def set_up() -> None:
        streams.append(await made.__aenter__())

    await in_a_task(set_up)
    assert (await streams[0].receive()).data == "0"
    await in_a_task(partial(made.__aexit__, None, None, None))
    assert streams[0].returned


PYTEST_ASYNCIO = """
import anyio
import pytest
import pytest_asyncio
from sse_asgi import sse_app
from sse_asgi.hub import Hub
from sse_asgi.testing import connect

left = []


@pytest_asyncio.fixture
async def hub():
    async with Hub() as hub:
        yield hub
    left.append("hub")


@pytest_asyncio.fixture
async def stream(hub):
    async def news(request):
        try:
            async for frame in hub.subscribe("news"):
                yield frame
        finally:
            await anyio.sleep(0.01)
            left.append("source")

    async with connect(sse_app(news)) as stream:
        yield stream
    left.append("stream")


@pytest.mark.asyncio
@pytest.mark.parametrize("number", [1, 2])
async def test_stream(hub, stream, number):
    await anyio.wait_all_tasks_blocked()
    await hub.publish("news", str(number))
    with anyio.fail_after(5):
        assert (await stream.receive()).data == str(number)


def test_what_was_left():
    assert left == ["source", "stream", "hub"] * 2
"""


def test_fixtures_of_pytest_asyncio(tmp_path: Path) -> None:
    if importlib.util.find_spec("pytest_asyncio") is None:
        missing("pytest-asyncio", "pytest-asyncio is not installed")
    (tmp_path / "test_it.py").write_text(PYTEST_ASYNCIO)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 passed" in ran.stdout


# How it ends.


async def test_nothing_is_left_when_the_test_is_cancelled_while_it_leaves() -> None:
    """The application cleans up as long as it needs, and then the cancellation goes on."""
    ended = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal ended
        await send(START)
        try:
            await anyio.sleep_forever()  # deaf: a disconnect does not end it
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.02)
            ended = True

    tasks = len(anyio.get_running_tasks())
    with anyio.CancelScope() as scope:
        async with connect(app):
            scope.deadline = anyio.current_time() + 0.01
    assert scope.cancelled_caught
    assert ended
    assert len(anyio.get_running_tasks()) == tasks


async def test_nothing_is_left_when_the_test_is_cancelled_before_the_start() -> None:
    ended = False

    async def app(asgi: Any, receive: Any, send: Any) -> None:
        nonlocal ended
        try:
            scope.deadline = anyio.current_time() + 0.01
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.02)
            ended = True

    with anyio.CancelScope() as scope:
        async with connect(app):
            raise AssertionError("entered")
    assert scope.cancelled_caught
    assert ended


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancelling_the_task_of_the_test_twice_leaves_nothing() -> None:
    """By ``Task.cancel()``, the second time while the application cleans up."""
    ended = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal ended
        await send(START)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.03)
            ended = True

    async def test() -> None:
        async with connect(app) as stream:
            await stream.receive()

    task = asyncio.create_task(test())
    for _ in range(2):
        await asyncio.sleep(0.01)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


class Panic(BaseException):
    """As Rust's panics are."""


@pytest.mark.parametrize("error", [Panic("x"), KeyboardInterrupt("x"), SystemExit("x")])
@pytest.mark.parametrize("when", ["before the start", "in between", "at the end"])
async def test_an_error_that_is_no_exception_comes_out_unchanged(
    error: BaseException, when: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if when == "before the start":
            raise error
        await send(START)
        if when == "at the end":
            await receive()
            await receive()
        raise error

    with anyio.fail_after(5), pytest.raises(type(error)) as caught:
        async with connect(app) as stream:
            if when == "in between":
                await stream.receive()
    assert caught.value is error


async def test_an_application_is_given_the_context_variables_of_the_test() -> None:
    name: ContextVar[str] = ContextVar("name", default="none")
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(name.get())
        await send(START)
        await send(body(b"", False))

    name.set("given")
    async with connect(app):
        pass
    assert seen == ["given"]


async def test_a_connection_is_entered_once() -> None:
    stream = connect(numbers)
    async with stream:
        pass
    with pytest.raises(RuntimeError, match="entered once"):
        async with stream:
            raise AssertionError("entered")


# Large events.


@pytest.mark.parametrize("size", [2**20, 2**21, 2**24])
async def test_a_large_event_is_read_if_it_may_be(size: int) -> None:
    app = sse_app(lambda: ["x" * size, "after"])
    async with connect(app, max_event_size=size + 10) as stream:
        assert [len(event.data) async for event in stream] == [size, 5]


@pytest.mark.parametrize("limit", [50, DEFAULT_MAX_EVENT_SIZE])
@pytest.mark.parametrize("joined", [False, True])
async def test_an_event_that_is_too_large_is_an_error_of_the_test(limit: int, joined: bool) -> None:
    """The application is not disturbed: it has done nothing wrong."""
    done = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal done
        frames = [b"data: before\n\n", b"data: %s\n\n" % (b"x" * limit), b"data: after\n\n"]
        await send(START)
        for frame in [b"".join(frames)] if joined else frames:
            await send(body(frame))
        await send(body(b"", False))
        done = True

    async with connect(app, max_event_size=limit) as stream:
        assert (await stream.receive()).data == "before"
        for _ in range(2):
            with pytest.raises(EventTooLargeError, match=f"{limit} bytes.*max_event_size="):
                await stream.receive()
        while not stream.returned:
            await anyio.sleep(0.001)
        assert stream.complete
        assert done


async def test_an_event_that_is_too_large_ends_no_stream_that_goes_on() -> None:
    """Nothing is kept, and the source goes on: it is the test that has to end."""

    async def endless(request: SSERequest) -> AsyncIterator[str]:
        while True:
            yield "x" * 100_000

    async with connect(sse_app(endless), max_event_size=10) as stream:
        with anyio.fail_after(5), pytest.raises(EventTooLargeError):
            await stream.receive()


@pytest.mark.parametrize("size", [0, -1])
def test_a_limit_that_is_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match="max_event_size must be at least 1 byte"):
        connect(numbers, max_event_size=size)


# The header ``Host``.


@pytest.mark.parametrize(
    ("headers", "scope", "host"),
    [
        (None, {}, b"testserver"),
        ({"Host": "a.example"}, {}, b"a.example"),
        ([("hOsT", "a.example")], {}, b"a.example"),
        (None, {"server": ("b.example", 8000)}, b"b.example:8000"),
        (None, {"server": ("b.example", 443), "scheme": "https"}, b"b.example"),
        (None, {"server": ("::1", 8000)}, b"[::1]:8000"),
        (None, {"server": None}, b"testserver"),
        (None, {"headers": [(b"host", b"c.example")]}, b"c.example"),
    ],
)
async def test_a_host_is_sent_once(headers: Any, scope: Any, host: bytes) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])
        await send(START)

    async with connect(app, headers=headers, scope=scope):
        pass
    assert seen == [(b"host", host)]


# What is no application.


async def clock(request: Any) -> AsyncIterator[str]:
    yield "tick"


def sync_clock() -> Iterator[str]:
    yield "tick"


async def endpoint(request: Any) -> list[str]:
    return ["tick"]


@pytest.mark.parametrize("wrong", [clock, sync_clock, endpoint])
def test_a_factory_is_no_application(wrong: Any) -> None:
    with pytest.raises(TypeError, match=rf"sse_app\({wrong.__name__}\)"):
        connect(wrong)


@pytest.mark.parametrize("make", [lambda: clock(None), sync_clock, lambda: endpoint(None)])
def test_a_generator_is_no_application(make: Callable[[], Any]) -> None:
    made = make()
    with pytest.raises(TypeError, match=r"sse_app\(\w+\), and do not call the function"):
        connect(made)
    if hasattr(made, "close"):
        made.close()


@pytest.mark.parametrize("wrong", [None, "module:app", ["event"], 5])
def test_what_can_not_be_called_is_no_application(wrong: Any) -> None:
    with pytest.raises(TypeError, match="connect\\(\\) needs an ASGI application"):
        connect(wrong)


def test_a_connection_has_to_be_entered() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

    async def main() -> None:
        with pytest.raises(RuntimeError, match="enter the connection first"):
            connect(app).status_code  # noqa: B018

    anyio.run(main)
