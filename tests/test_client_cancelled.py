"""The client, cancelled wherever it waits."""

from __future__ import annotations

import asyncio
import gc
import importlib
import re
import ssl
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from sse_asgi.client import EventSource, State, backoff

from .http_peer import LIBRARIES, frames
from .test_client_sockets import GONE, HANG, HEAD, chunked

pytestmark = pytest.mark.anyio

T = TypeVar("T")

REDIRECT = b"HTTP/1.1 302 Found\r\nlocation: /b\r\ncontent-length: 3\r\n\r\nabc"

#: Not the default, which takes longer to make than all else here.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

#: How many events there are, two in each response.
LAST = 4


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "LEAST", 0.0)


class Waits:
    """Counts how often a coroutine waits, and calls a function when it does for the n-th time."""

    def __init__(self, at: int, then: Callable[[], object]) -> None:
        self.count = 0
        self._at = at
        self._then = then

    @property
    def is_over(self) -> bool:
        """Whether the function was called."""
        return self.count >= self._at

    @types.coroutine
    def watch(self, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        step, value = coroutine.send, None
        while True:
            try:
                waits_for = step(value)
            except StopIteration as exc:
                result: T = exc.value
                return result
            self.count += 1
            if self.count == self._at:
                self._then()
            try:
                step, value = coroutine.send, (yield waits_for)
            except BaseException as exc:
                step, value = coroutine.throw, exc


class Scripted:
    """Redirects each other request, and answers those between with two events, in pieces."""

    def __init__(self) -> None:
        #: How many connections there are.
        self.open = 0
        self._requests = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        with anyio.fail_after(HANG):
            async with (
                await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(listener.serve, self._serve)
                yield f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}/"
                tasks.cancel_scope.cancel()

    async def has_at_most(self, connections: int) -> None:
        while self.open > connections:
            await anyio.sleep(0.001)

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        self.open += 1
        try:
            async with stream:
                request = b""
                async for data in stream:
                    request += data
                    if b"\r\n\r\n" in request:
                        found = re.search(rb"(?i)last-event-id: (\d+)", request)
                        await self._answer(stream, int(found[1]) if found else 0)
                        request = b""
        except anyio.BrokenResourceError:
            pass
        finally:
            self.open -= 1

    async def _answer(self, stream: anyio.abc.SocketStream, had: int) -> None:
        self._requests += 1
        if had == LAST:
            await stream.send(GONE)
        elif self._requests % 2:
            await stream.send(REDIRECT)
        else:
            body = frames(had + 1, had + 2)
            await stream.send(HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked(body[:7]))
            await anyio.sleep(0.001)
            await stream.send(chunked(body[7:]) + b"0\r\n\r\n")


class Cancelled:
    """A source that is followed to its end, and cancelled once on the way.

    :param how: in ``step``, by a scope around a step; in ``block`` and ``own client``, by one
        around the source; ``Task.cancel()`` is the way of asyncio, which no scope knows.
    """

    def __init__(self, library: Any, how: str, url: str, client: Any) -> None:
        self.library, self.how, self.url, self.client = library, how, url, client
        self.data: list[str] = []
        self.waits: Waits

    async def follow(self, at: int) -> None:
        scope = anyio.CancelScope()
        if self.how == "Task.cancel()":
            task = asyncio.current_task()
            assert task is not None
            self.waits = Waits(at, task.cancel)
        else:
            self.waits = Waits(at, lambda: scope.cancel())
        source = self._source("0", None if self.how == "own client" else self.client)
        if self.how == "step":
            async with source:
                while source.state is not State.CLOSED:
                    with anyio.CancelScope() as scope:
                        await self.waits.watch(self._step(source))
        else:
            with scope, caught_cancel():
                await self.waits.watch(self._all(source))
            assert source.state is State.CLOSED
            await self._all(self._source(source.last_event_id, self.client))

    def _source(self, last_event_id: str, client: Any) -> EventSource:
        async def headers() -> dict[str, str]:
            await anyio.lowlevel.checkpoint()
            return {}

        return EventSource(
            self.url, client=client, retry=1, headers=headers, last_event_id=last_event_id
        )

    async def _all(self, source: EventSource) -> None:
        async with source:
            async for event in source:
                self.data.append(event.data)

    async def _step(self, source: EventSource) -> None:
        async for event in source:
            self.data.append(event.data)
            return


@contextmanager
def caught_cancel() -> Iterator[None]:
    """Go on after ``Task.cancel()``, as whoever has called it may."""
    try:
        yield
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is None or not task.uncancel() == 0:
            raise


@pytest.mark.parametrize(
    ("anyio_backend", "name", "how"),
    [
        (backend, name, how)
        for backend in ("asyncio", "trio")
        for name in LIBRARIES
        for how in ("step", "block", "Task.cancel()", "own client")
        if (backend, how) != ("trio", "Task.cancel()") and (name, how) != ("httpx", "own client")
    ],
)
async def test_cancelled_wherever_it_waits(anyio_backend: str, name: str, how: str) -> None:
    """Nothing is lost or comes twice, and nothing is left: no socket, no task, no exception."""
    library = importlib.import_module(name)
    # httpcore 1.0.9 keeps a connection that no request uses if this comes while it takes a lock.
    most = 100 if (name, how) == ("httpx", "Task.cancel()") else 1
    complaints: list[Any] = []
    if anyio_backend == "asyncio":
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: complaints.append(context))
    tasks = len(anyio.get_running_tasks())
    at, goes_on = 0, True
    while goes_on:
        at += 1
        server = Scripted()
        async with server.running() as url:
            async with library.AsyncClient(
                trust_env=False, verify=NO_TLS, limits=library.Limits(max_connections=most)
            ) as client:
                run = Cancelled(library, how, url, client)
                await run.follow(at)
                assert run.data == [str(n) for n in range(1, LAST + 1)], at
                await server.has_at_most(most)
                # The pool of the client has a place for it.
                assert (await client.get(url)).status_code in (200, 302), at
            await server.has_at_most(0)
        assert len(anyio.get_running_tasks()) == tasks, at
        goes_on = run.waits.is_over
    gc.collect()
    await anyio.lowlevel.checkpoint()
    assert not complaints
    assert at > 15
