"""What is asked of an event loop, on each that there is."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import weakref
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import uvicorn

from sse_asgi import runtime, sse_app
from sse_asgi.hub import Hub
from sse_asgi.runtime.native import NativeRuntime
from sse_asgi.testing import connect


async def stream_and_forget() -> weakref.ref[object]:
    hub = Hub()

    async def source() -> Any:
        yield "a"
        async for frame in hub.subscribe("t"):
            yield frame

    async with connect(sse_app(source)) as stream:
        await stream.receive()
    return weakref.ref(anyio.lowlevel.current_token().native_token)


def test_an_event_loop_is_not_kept(anyio_backend: str) -> None:
    """What is made for a loop goes with it: a test run with a loop for each test makes many."""
    ended = anyio.run(stream_and_forget, backend=anyio_backend)
    gc.collect()
    assert ended() is None


def test_an_event_loop_of_a_bare_task_is_not_kept() -> None:
    ended = asyncio.run(stream_and_forget())
    gc.collect()
    assert ended() is None


@pytest.mark.anyio
async def test_each_loop_has_one_runtime() -> None:
    assert runtime.current() is runtime.current()
    assert runtime.current().is_of(anyio.lowlevel.current_token().native_token)
    assert not runtime.current().is_of(None)


def test_a_bare_task_has_the_native_runtime() -> None:
    async def main() -> None:
        assert isinstance(runtime.of_task(), NativeRuntime)
        assert runtime.of_task() is runtime.of_task()
        with anyio.CancelScope():
            assert runtime.of_task() is runtime.current()
            await anyio.lowlevel.checkpoint()

    asyncio.run(main())


@pytest.mark.anyio
async def test_a_call_after_some_time() -> None:
    called: list[str] = []
    loop = runtime.current()
    loop.after(0.01, lambda: called.append("later"))
    loop.after(0, lambda: called.append("at once"))
    undo = loop.after(0.005, lambda: called.append("never"))
    undo()
    undo()
    loop.after(math.inf, lambda: called.append("never"))()
    with anyio.fail_after(5):
        while "later" not in called:
            await anyio.sleep(0.001)
    assert called == ["at once", "later"]
    undo()


@pytest.mark.anyio
async def test_calls_every_so_often() -> None:
    called: list[int] = []
    stop = runtime.current().every(0.001, lambda: called.append(len(called)))
    with anyio.fail_after(5):
        while len(called) < 3:
            await anyio.sleep(0.001)
    stop()
    before = len(called)
    await anyio.sleep(0.02)
    assert len(called) == before


@pytest.mark.anyio
async def test_a_call_from_a_thread() -> None:
    loop = runtime.current()
    called: list[tuple[str, int]] = []
    thread = threading.Thread(
        target=lambda: loop.from_thread(lambda it: called.append((it, threading.get_ident())), "a")
    )
    thread.start()
    thread.join()
    with anyio.fail_after(5):
        while not called:
            await anyio.sleep(0.001)
    assert called == [("a", threading.get_ident())]


def test_a_call_for_a_loop_that_is_closed_does_nothing(anyio_backend: str) -> None:
    async def main() -> tuple[Any, object]:
        return runtime.current(), anyio.lowlevel.current_token().native_token

    loop, kept = anyio.run(main, backend=anyio_backend)
    loop.from_thread(pytest.fail, "called")
    del kept
    gc.collect()
    loop.from_thread(pytest.fail, "called")


@pytest.mark.anyio
async def test_parked_until_somebody_wakes_it() -> None:
    wakes: list[Any] = []
    loop = runtime.current()
    loop.after(0.005, lambda: wakes[0]())
    with anyio.fail_after(5):
        await loop.parked(wakes.append)
    wakes[0]()  # nobody waits any more
    with anyio.move_on_after(0.005):
        await loop.parked(wakes.append)
    wakes[1]()  # it was cancelled


async def stream_on_uvicorn() -> weakref.ref[object]:
    async def source() -> Any:
        yield "a"

    server = uvicorn.Server(uvicorn.Config(sse_app(source), port=0, log_level="critical"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve)
        while not server.started:
            await anyio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with await anyio.connect_tcp("127.0.0.1", port) as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            received = b""
            while b"0\r\n\r\n" not in received:
                received += await client.receive()
        server.should_exit = True
    return weakref.ref(asyncio.get_running_loop())


def test_an_event_loop_of_a_server_is_not_kept() -> None:
    """The server that streams watched is let go with the last of them."""
    ended = anyio.run(stream_on_uvicorn)
    gc.collect()
    assert ended() is None
