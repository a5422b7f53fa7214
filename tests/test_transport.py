"""The transport for httpx and httpx2, against applications that are written out by hand."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import trio
import trio.testing
from fastapi import FastAPI
from httpx_sse import aconnect_sse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sse_asgi import Shutdown, SSERequest, sse_app
from sse_asgi.starlette import EventSourceResponse
from sse_asgi.testing import Transport, transport

from .peers import missing

pytestmark = [
    pytest.mark.anyio,
    # On trio they do not close all of their own when a response is left early.
    pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning"),
]

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"Content-Type", b"text/plain"), (b"x-one", b"1"), (b"x-one", b"2")],
}

App = Callable[[Any, Any, Any], Awaitable[None]]


@pytest.fixture(params=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    if importlib.util.find_spec(request.param) is None:
        missing("httpx2", f"{request.param} is not installed")
    return importlib.import_module(request.param)


def body(data: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def client_of(library: Any, app: App, **options: Any) -> Any:
    return library.AsyncClient(
        transport=transport(app, **options), base_url="http://test", timeout=None
    )


class Endless:
    """An application that sends as fast as it may, and notes what happens to it."""

    def __init__(self, spec_version: str = "2.3") -> None:
        self.sent = 0
        self.log: list[str] = []
        self.scope = {"asgi": {"version": "3.0", "spec_version": spec_version}}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await receive()
            await send(START)
            async with anyio.create_task_group() as tasks:

                async def listen() -> None:
                    self.log.append((await receive())["type"])
                    tasks.cancel_scope.cancel()

                tasks.start_soon(listen)
                for number in itertools.count():
                    await send(body(b"%d\n" % number))
                    self.sent += 1
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            self.log.append("cleaned up")


async def read(parts: Any, count: int) -> list[bytes]:
    return [await anext(parts) for _ in range(count)]


# The request.


async def test_the_scope(library: Any) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["mine"] = 1
        seen.append(scope)
        await send({"type": "http.response.start", "status": 204})
        await send(body(b"", False))

    state = {"given": 5}
    async with client_of(library, app, scope={"state": state, "root_path": "/root"}) as client:
        await client.get("https://a.example:8443/a%20b/ä?c=%20&d=", headers={"X-Two": "b"})
        await client.head("/")
    first, second = seen
    assert state == {"given": 5}
    headers = dict(first.pop("headers"))
    assert headers[b"host"] == b"a.example:8443"
    assert headers[b"x-two"] == b"b"
    assert first == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https",
        "path": "/a b/ä",
        "raw_path": b"/a%20b/%C3%A4",
        "root_path": "/root",
        "query_string": b"c=%20&d=",
        "client": ("127.0.0.1", 50000),
        "server": ("a.example", 8443),
        "state": {"given": 5, "mine": 1},
    }
    assert (second["method"], second["scheme"], second["server"]) == ("HEAD", "http", ("test", 80))


async def received(receive: Any) -> list[tuple[bytes, bool]]:
    messages = []
    more = True
    while more:
        message = await receive()
        more = message["more_body"]
        messages.append((message["body"], more))
    return messages


async def test_a_body_is_one_message(library: Any) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(await received(receive))
        await send(START)
        await send(body(b"", False))

    async with client_of(library, app) as client:
        await client.post("/", json={"a": 1})
        await client.get("/")
    assert [json.loads(seen[0][0][0])] == [{"a": 1}]
    assert [[more for _, more in messages] for messages in seen] == [[False], [False]]
    assert seen[1] == [(b"", False)]


async def test_a_body_is_sent_part_by_part(library: Any) -> None:
    """As fast as the application receives it, and no faster."""
    seen: list[bytes] = []
    made = 0
    go = anyio.Event()

    async def upload() -> AsyncIterator[bytes]:
        nonlocal made
        for number in range(5):
            made += 1
            yield b"%d" % number * 65536

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        for message, _more in await received(receive):
            seen.append(message[:1])
        await send(START)
        await send(body(b"", False))

    async with client_of(library, app) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(client.post, "/", content=upload()))
        await anyio.wait_all_tasks_blocked()
        assert made == 2  # one is sent, and one waits
        go.set()
    assert b"".join(seen) == b"01234"


@pytest.mark.parametrize("fails", [False, True])
async def test_an_answer_ends_the_request(library: Any, fails: bool) -> None:
    async def upload() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if fails:
            raise KeyError("early")
        await send({**START, "status": 413})
        await send(body(b"too large", False))

    async with client_of(library, app) as client:
        if fails:
            with pytest.raises(KeyError, match="early"):
                await client.post("/", content=upload())
        else:
            assert (await client.post("/", content=upload())).text == "too large"


async def test_a_request_that_can_not_be_made_is_given_up(library: Any) -> None:
    log: list[Any] = []

    async def upload() -> AsyncIterator[bytes]:
        yield b"x"
        await anyio.wait_all_tasks_blocked()
        raise LookupError("of the test")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        log.append(await receive())
        log.append(await receive())

    async with client_of(library, app) as client:
        with pytest.raises(LookupError, match="of the test"):
            await client.post("/", content=upload())
        assert log == [
            {"type": "http.request", "body": b"x", "more_body": True},
            {"type": "http.disconnect"},
        ]


async def test_a_receive_that_is_cancelled_loses_nothing(library: Any) -> None:
    seen: list[Any] = []
    go = anyio.Event()

    async def upload() -> AsyncIterator[bytes]:
        await go.wait()
        yield b"x"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with anyio.move_on_after(0.01):
            await receive()
        go.set()
        seen.extend(await received(receive))
        await send(START)
        await send(body(b"", False))

    async with client_of(library, app) as client:
        await client.post("/", content=upload())
    assert b"".join(part for part, _ in seen) == b"x"


@pytest.mark.parametrize("url", ["/path", "ftp://test/"])
async def test_a_url_that_is_not_one_of_http(library: Any, url: str) -> None:
    async with library.AsyncClient(transport=transport(Endless())) as client:
        with pytest.raises(library.UnsupportedProtocol, match="give the client a base_url"):
            await client.get(url)


# The response.


async def test_a_response(library: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({**START, "status": 418})
        for part in (b"tea", b"", b"pot"):
            await send(body(part))
        await send({"type": "http.response.body"})

    async with client_of(library, app) as client:
        response = await client.get("/")
    assert response.status_code == 418
    assert response.http_version == "HTTP/1.1"
    assert response.headers.get_list("x-one") == ["1", "2"]
    assert response.text == "teapot"


async def test_an_endless_stream_is_read_and_left(library: Any) -> None:
    app = Endless()
    async with client_of(library, app) as client:
        async with client.stream("GET", "/") as response:
            assert response.status_code == 200
            async with contextlib.aclosing(response.aiter_raw()) as parts:
                assert await read(parts, 3) == [b"0\n", b"1\n", b"2\n"]
                assert app.log == []
        assert app.log == ["http.disconnect", "cleaned up"]


async def test_the_application_is_never_far_ahead(library: Any) -> None:
    """One message is sent and not read, and the next one waits."""
    app = Endless()
    async with client_of(library, app) as client, client.stream("GET", "/") as response:
        async with contextlib.aclosing(response.aiter_raw()) as parts:
            for number in range(5):
                await anyio.wait_all_tasks_blocked()
                assert app.sent == number + 1
                assert await anext(parts) == b"%d\n" % number


async def test_the_start_comes_before_the_body(library: Any) -> None:
    go = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await go.wait()
        await send(body(b"x", False))

    async with client_of(library, app) as client, client.stream("GET", "/") as response:
        assert response.status_code == 200
        go.set()
        assert await response.aread() == b"x"


async def test_streams_side_by_side(library: Any) -> None:
    app = Endless()
    async with client_of(library, app) as client, contextlib.AsyncExitStack() as stack:
        streams = []
        for _ in range(5):
            response = await stack.enter_async_context(client.stream("GET", "/"))
            streams.append(
                await stack.enter_async_context(contextlib.aclosing(response.aiter_raw()))
            )
        for number in range(5):
            assert [await anext(parts) for parts in streams] == [b"%d\n" % number] * 5
    assert app.log.count("cleaned up") == 5


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_send_after_a_disconnect(library: Any, spec_version: str) -> None:
    log: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        log.append((await receive())["type"])
        try:
            await send(body(b"into the void"))
        except OSError:
            log.append("OSError")

    asgi = {"version": "3.0", "spec_version": spec_version}
    async with client_of(library, app, scope={"asgi": asgi}) as client:
        async with client.stream("GET", "/"):
            pass
        assert log == ["http.disconnect", *(["OSError"] if spec_version == "2.4" else [])]


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_a_response_without_a_body(library: Any, method: str, status: int) -> None:
    """Nobody has left: the response is complete."""
    log: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({**START, "status": status})
        for _ in range(3):
            await send(body(b"not for the client"))
            await anyio.sleep(0.01)
        with anyio.move_on_after(0.01):
            log.append((await receive())["type"])
        await send(body(b"", False))
        log.append("sent")

    async with client_of(library, app) as client:
        response = await client.request(method, "/")
        assert (response.status_code, response.content) == (status, b"")
        assert log == ["sent"]


async def test_a_response_without_a_body_that_does_not_end(library: Any) -> None:
    app = Endless()
    async with client_of(library, app, cleanup_timeout=0.05) as client:
        assert (await client.head("/")).content == b""
    assert app.log == ["http.disconnect", "cleaned up"]


async def test_what_comes_after_the_response_is_waited_for(library: Any) -> None:
    log: list[str] = []

    async def later() -> None:
        await anyio.sleep(0.02)
        log.append("later")

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("now", background=BackgroundTask(later))

    async with client_of(library, Starlette(routes=[Route("/", endpoint)])) as client:
        assert (await client.get("/")).text == "now"
        assert log == ["later"]


# Errors.


async def test_an_error_before_the_start(library: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("early")

    async with client_of(library, app) as client:
        with pytest.raises(KeyError, match="early"):
            await client.get("/")


async def test_an_error_in_the_middle(library: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"x"))
        raise KeyError("late")

    async with client_of(library, app) as client:
        async with client.stream("GET", "/") as response:
            parts = response.aiter_raw()
            assert await anext(parts) == b"x"
            with pytest.raises(KeyError, match="late"):
                await anext(parts)
        with pytest.raises(KeyError, match="late"):
            await client.get("/")


async def test_an_error_after_the_end(library: Any) -> None:
    """As of Starlette, which answers 500 and raises again."""

    async def endpoint(request: Request) -> Response:
        raise KeyError("answered")

    async with client_of(library, Starlette(routes=[Route("/", endpoint)])) as client:
        with pytest.raises(KeyError, match="answered"):
            await client.get("/")
        with pytest.raises(KeyError, match="answered"):
            async with client.stream("GET", "/") as response:
                assert response.status_code == 500


async def fails_when_left(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send(START)
    await receive()
    raise KeyError("left")


async def test_an_error_after_the_client_has_left(library: Any) -> None:
    async with client_of(library, fails_when_left) as client:
        with pytest.raises(KeyError, match="left"):
            async with client.stream("GET", "/"):
                pass


async def test_the_applications_error_does_not_hide_the_tests(library: Any) -> None:
    """It comes later, if it can."""
    with pytest.raises(KeyError, match="left"):
        async with client_of(library, fails_when_left) as client:
            with pytest.raises(LookupError, match="of the test"):
                async with client.stream("GET", "/"):
                    raise LookupError("of the test")
    with pytest.raises(LookupError, match="of the test"):
        async with client_of(library, fails_when_left) as client:
            async with client.stream("GET", "/"):
                raise LookupError("of the test")


async def test_errors_that_nobody_was_told_of_come_together(library: Any) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with client_of(library, fails_when_left) as client:
            for _ in range(2):
                await client.send(client.build_request("GET", "/"), stream=True)
    assert [type(error) for error in caught.value.exceptions] == [KeyError, KeyError]


@pytest.mark.parametrize("error", [KeyboardInterrupt("x"), SystemExit("x")])
async def test_an_error_that_is_no_exception(library: Any, error: BaseException) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        raise error

    async with client_of(library, app) as client:
        with pytest.raises(type(error)) as caught:
            await client.get("/")
    assert caught.value is error


@pytest.mark.parametrize(
    ("messages", "error"),
    [([], "there was no response"), ([START, body(b"x")], "before the end of the response")],
)
async def test_a_response_that_is_not_complete(
    library: Any, messages: list[Any], error: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    async with client_of(library, app) as client:
        with pytest.raises(library.RemoteProtocolError):
            await client.get("/")


async def test_an_application_that_breaks_the_protocol_is_told(library: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"x", False))
        await send(body(b"y"))

    async with client_of(library, app) as client:
        with pytest.raises(RuntimeError, match="the response is complete"):
            await client.get("/")


# Time.


@pytest.mark.parametrize("started", [False, True])
async def test_read_timeout(library: Any, started: bool) -> None:
    log: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if started:
            await send(START)
            await send(body(b"x"))
        log.append((await receive())["type"])

    async with client_of(library, app) as client:
        with pytest.raises(library.ReadTimeout, match=r"sent nothing for 0\.05 seconds") as caught:
            await client.get("/", timeout=library.Timeout(None, read=0.05))
        assert caught.value.request.url == "http://test/"
        assert log == ["http.disconnect"]


async def test_write_timeout(library: Any) -> None:
    async def upload() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 65536

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.sleep_forever()

    async with client_of(library, app, cleanup_timeout=0) as client:
        with pytest.raises(library.WriteTimeout, match=r"received nothing for 0\.05 seconds"):
            await client.post("/", content=upload(), timeout=library.Timeout(None, write=0.05))


def test_times_are_those_of_the_clock_of_a_test(library: Any) -> None:
    """An hour of pings with the timeout that a client has by itself."""

    async def silence(request: SSERequest) -> AsyncIterator[str]:
        await anyio.sleep(3600)
        yield "at last"

    async def main() -> None:
        app = transport(sse_app(silence, ping=4))
        async with library.AsyncClient(transport=app, base_url="http://test") as client:
            begin = anyio.current_time()
            response = await client.get("/")
            assert response.text.endswith("data: at last\n\n")
            assert 3600 <= anyio.current_time() - begin < 3601
            begin = anyio.current_time()
            quiet = transport(sse_app(silence, ping=6))
            async with library.AsyncClient(transport=quiet, base_url="http://test") as client:
                with pytest.raises(library.ReadTimeout):
                    await client.get("/")
            assert anyio.current_time() - begin == 5

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# How it ends.


async def test_a_reader_that_is_cancelled_disconnects(library: Any) -> None:
    """The application is not cancelled, and has done its cleanup."""
    log: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        await send(body(b"x"))
        log.append((await receive())["type"])
        await anyio.sleep(0.01)
        log.append("cleaned up")

    async with client_of(library, app) as client:
        async with anyio.create_task_group() as tasks:
            parts: list[bytes] = []

            async def reader() -> None:
                async with client.stream("GET", "/") as response:
                    async with contextlib.aclosing(response.aiter_raw()) as stream:
                        parts.append(await anext(stream))
                        await anext(stream)

            tasks.start_soon(reader)
            while not parts:
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
        assert log == ["http.disconnect", "cleaned up"]


async def test_a_request_that_is_cancelled_disconnects(library: Any) -> None:
    log: list[str] = []
    scope = anyio.CancelScope()

    async def app(asgi: Any, receive: Any, send: Any) -> None:
        await receive()
        scope.cancel()
        log.append((await receive())["type"])
        await anyio.sleep(0.01)
        log.append("cleaned up")

    async with client_of(library, app) as client:
        with scope:
            await client.get("/")
        assert scope.cancelled_caught
        assert log == ["http.disconnect", "cleaned up"]


async def test_a_deaf_application_runs_on_until_the_client_is_closed(library: Any) -> None:
    log: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            log.append("cancelled")

    tasks = len(anyio.get_running_tasks())
    async with client_of(library, app, cleanup_timeout=0.02) as client:
        async with client.stream("GET", "/"):
            pass
        assert log == []
        await client.send(client.build_request("GET", "/"), stream=True)
    assert log == ["cancelled"] * 2
    assert len(anyio.get_running_tasks()) == tasks


async def test_a_client_that_is_closed_while_somebody_reads(library: Any) -> None:
    app = Endless()

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        await receive()

    client = client_of(library, silent)
    async with anyio.create_task_group() as tasks:

        async def reader() -> None:
            with pytest.raises(library.ReadError, match="closed during a read"):
                await client.get("/")

        tasks.start_soon(reader)
        await anyio.wait_all_tasks_blocked()
        await client.aclose()
    # Without a reader.
    client = client_of(library, app)
    await client.send(client.build_request("GET", "/"), stream=True)
    await client.aclose()
    assert app.log == ["http.disconnect", "cleaned up"]


async def test_a_client_is_entered_in_one_task_and_left_in_another(library: Any) -> None:
    """As a fixture of pytest-asyncio is."""
    app = Endless()

    async def in_a_task(function: Callable[[], Awaitable[object]]) -> None:
        async def call() -> None:
            await function()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)

    client = client_of(library, app)
    await in_a_task(client.__aenter__)
    response = await client.send(client.build_request("GET", "/"), stream=True)
    await in_a_task(response.aclose)
    assert app.log == ["http.disconnect", "cleaned up"]
    await client.send(client.build_request("GET", "/"), stream=True)
    await in_a_task(partial(client.__aexit__, None, None, None))
    assert app.log == ["http.disconnect", "cleaned up"] * 2


async def test_an_application_is_given_the_context_variables_of_the_test(library: Any) -> None:
    name: ContextVar[str] = ContextVar("name", default="none")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.lowlevel.checkpoint()
        await send(START)
        await send(body(name.get().encode(), False))

    async with client_of(library, app) as client:
        name.set("given")
        assert (await client.get("/")).text == "given"


# What is wrong.


def clock() -> Iterator[str]:
    yield "tick"


def test_a_factory_is_no_application() -> None:
    with pytest.raises(TypeError, match=r"transport\(\) needs an ASGI app.* pass sse_app\(clock\)"):
        transport(clock)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [-1, math.nan])
def test_a_time_that_is_out_of_range(seconds: float) -> None:
    with pytest.raises(ValueError, match="cleanup_timeout must be at least 0 seconds"):
        transport(Endless(), cleanup_timeout=seconds)


def test_types() -> None:
    """For type checkers it is a transport of both."""
    made: httpx.AsyncBaseTransport = transport(Endless())
    assert isinstance(made, Transport)


# Event streams.


async def numbers(request: SSERequest) -> AsyncIterator[dict[str, Any]]:
    number = int(request.last_event_id or 0)
    while True:
        number += 1
        yield {"event": "number", "data": number, "id": number}
        await anyio.lowlevel.checkpoint()


async def test_event_streams_of_httpx_sse() -> None:
    async with client_of(httpx, sse_app(numbers)) as client:
        headers = {"Last-Event-ID": "41"}
        async with aconnect_sse(client, "GET", "/", headers=headers) as source:
            async with contextlib.aclosing(source.aiter_sse()) as events:
                found = [await anext(events) for _ in range(3)]
    assert [(event.event, event.data, event.id) for event in found] == [
        ("number", "42", "42"),
        ("number", "43", "43"),
        ("number", "44", "44"),
    ]


async def test_event_streams_of_httpx2() -> None:
    if importlib.util.find_spec("httpx2") is None:
        missing("httpx2", "httpx2 is not installed")
    async with client_of(importlib.import_module("httpx2"), sse_app(numbers)) as client:
        async with client.sse("/", headers={"Last-Event-ID": "41"}) as source:
            async with contextlib.aclosing(aiter(source)) as events:
                found = [await anext(events) for _ in range(3)]
    assert [(event.event, event.data, event.id) for event in found] == [
        ("number", "42", "42"),
        ("number", "43", "43"),
        ("number", "44", "44"),
    ]


async def test_streams_of_starlette_and_fastapi(library: Any) -> None:
    closed: list[str] = []

    async def ticks(name: str) -> AsyncIterator[dict[str, str]]:
        try:
            while True:
                yield {"data": name}
                await anyio.lowlevel.checkpoint()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            closed.append(name)

    async def endpoint(request: Request) -> Response:
        return EventSourceResponse(ticks("starlette"))

    async def echo(request: Request) -> Response:
        return JSONResponse(await request.json())

    api = FastAPI()

    @api.post("/events")
    async def events(body: dict[str, str]) -> EventSourceResponse:
        return EventSourceResponse(ticks(body["name"]))

    app = Starlette(routes=[Route("/events", endpoint), Route("/echo", echo, methods=["POST"])])
    app.mount("/api", api)
    async with client_of(library, app) as client:
        assert (await client.post("/echo", json=[1])).json() == [1]
        for method, path, name in (
            ("GET", "/events", "starlette"),
            ("POST", "/api/events", "fastapi"),
        ):
            request = {"json": {"name": name}} if method == "POST" else {}
            async with client.stream(method, path, **request) as response:
                assert response.headers["content-type"].startswith("text/event-stream")
                async with contextlib.aclosing(response.aiter_lines()) as lines:
                    assert await anext(lines) == f"data: {name}"
            assert closed.pop() == name


async def test_streams_end_with_the_server(library: Any) -> None:
    shutdown = Shutdown()
    async with client_of(library, sse_app(numbers, shutdown=shutdown)) as client:
        async with client.stream("GET", "/") as response:
            async with contextlib.aclosing(response.aiter_raw()) as parts:
                await anext(parts)
                shutdown.drain()
                async for _part in parts:
                    pass
        assert response.is_closed
