"""What several threads may use at once; none of it relies on a global interpreter lock.

Threads are switched as often as the interpreter can. That is not the same as a free-threaded
build, on which the same tests are run where there is one.
"""

from __future__ import annotations

import importlib.machinery
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import sse_asgi
from sse_asgi import Limit, Shutdown, SSERequest, sse_app
from sse_asgi.hub import Hub
from sse_asgi.testing import connect

THREADS = 8


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(function: Callable[[int], object]) -> None:
    """Call it with 0, 1, 2 ... in as many threads; raise what the first of them has raised."""
    errors: list[BaseException] = []
    ready = threading.Barrier(THREADS)

    def run(number: int) -> None:
        try:
            ready.wait()
            function(number)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_there_is_no_compiled_code() -> None:
    """Importing an extension that does not say that it needs no GIL turns that on again."""
    compiled = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    files = [path.name for path in Path(sse_asgi.__file__).parent.rglob("*")]
    assert "app.py" in files
    assert not [name for name in files if name.endswith(compiled)]


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="has the lock")
def test_importing_does_not_turn_the_lock_on() -> None:
    code = "import sys, sse_asgi, sse_asgi.hub, sse_asgi.testing; print(sys._is_gil_enabled())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_places_are_counted(anyio_backend: str) -> None:
    """Of an application, and of a limit: at no time are there more, and at the end none."""
    most = 3
    open_now: list[int] = []
    refused: list[int] = []

    async def source(request: SSERequest) -> Any:
        open_now.append(1)
        assert app.connections <= most
        yield "a"
        await anyio.lowlevel.checkpoint()
        open_now.pop()

    limit = Limit(most, key=lambda request: "everybody")
    app = sse_app(source, max_connections=most, limit=limit)

    async def client() -> None:
        for _ in range(10):
            async with connect(app) as stream:
                if stream.status_code != 200:
                    refused.append(stream.status_code)
                async for _ in stream:
                    assert len(open_now) <= most

    in_threads(lambda number: anyio.run(client, backend=anyio_backend))
    assert app.connections == 0
    assert open_now == []
    assert set(refused) <= {429, 503}


def test_a_thread_drains_the_streams_of_all(anyio_backend: str) -> None:
    shutdown = Shutdown()
    started = threading.Barrier(THREADS)

    async def source() -> Any:
        yield "a"
        await anyio.sleep_forever()

    app = sse_app(source, shutdown=shutdown)

    async def client(number: int) -> None:
        async with connect(app) as stream:
            assert (await stream.receive()).data == "a"
            await anyio.to_thread.run_sync(started.wait)
            if number == 0:
                shutdown.drain()
            assert [event async for event in stream] == []

    in_threads(lambda number: anyio.run(client, number, backend=anyio_backend))
    assert app.connections == 0


def test_a_stream_comes_while_another_thread_drains() -> None:
    """In the middle of its look at who listens, without a lock around both."""
    shutdown = Shutdown()

    class Busy(dict[Any, Any]):
        def values(self) -> Any:
            for value in super().values():
                self[object()] = value
                yield value

    class Runtime:
        def from_thread(self, *call: Any) -> None:
            told.append(self)

    told: list[Runtime] = []
    shutdown._listeners = Busy({object(): Runtime()})
    shutdown.drain()
    assert len(told) == 1


@pytest.mark.anyio
async def test_threads_publish_to_one_hub() -> None:
    """Each event comes once, and those of one thread in its order."""
    hub = Hub()
    events = 20

    def publish(number: int) -> None:
        for count in range(events):
            hub.publish_from_thread("news", f"{number} {count}")

    async with hub, connect(sse_app(lambda: hub.subscribe("news"))) as stream:
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, in_threads, publish)
            got = [(await stream.receive()).data.split() for _ in range(THREADS * events)]
    for number in range(THREADS):
        assert [int(count) for of, count in got if int(of) == number] == list(range(events))


@pytest.mark.anyio
async def test_a_sync_source_ends_while_it_is_stepped() -> None:
    """Its thread and the event loop hand over to each other, and never run its code at once."""
    inside: list[int] = []

    def source() -> Iterator[str]:
        try:
            for number in range(200):
                inside.append(number)
                assert len(inside) == 1
                inside.pop()
                yield str(number)
        finally:
            closed.append(threading.current_thread())

    closed: list[threading.Thread] = []
    for most in range(1, 201, 20):
        async with connect(sse_app(source)) as stream:
            for _ in range(most):
                await stream.receive()
    assert len(closed) == 10
