"""How many streams each user may have."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from sse_asgi import HTTPError, Limit, SSERequest, sse_app
from sse_asgi.hub import Hub, MemoryLog
from sse_asgi.testing import Connection, connect

from .streams import Recorder, http_scope

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("through_every_entry_point")]


def user(request: SSERequest) -> str | None:
    return request.cookies.get("user")


def cookie(name: str) -> dict[str, str]:
    return {"cookie": f"user={name}"}


def idle() -> Any:
    return Recorder().source("a")


async def opened(stack: AsyncExitStack, app: Any, name: str) -> Connection:
    """Open a stream of a user, and wait until it has begun."""
    stream = await stack.enter_async_context(connect(app, headers=cookie(name)))
    if stream.status_code == 200:
        await stream.receive()
    return stream


async def test_one_more_is_refused_and_others_are_not() -> None:
    app = sse_app(lambda: idle(), limit=Limit(2, key=user))
    async with AsyncExitStack() as stack:
        first = await opened(stack, app, "ada")
        await opened(stack, app, "ada")
        refused = await opened(stack, app, "ada")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert (await opened(stack, app, "ben")).status_code == 200
        await first.disconnect()
        assert (await opened(stack, app, "ada")).status_code == 200


async def test_who_has_no_key_has_no_limit() -> None:
    app = sse_app(lambda: idle(), limit=Limit(1, key=user))
    async with AsyncExitStack() as stack:
        for _ in range(5):
            stream = await stack.enter_async_context(connect(app))
            assert stream.status_code == 200


async def test_applications_may_count_together() -> None:
    limit = Limit(1, key=user)
    news, more = (sse_app(lambda: idle(), limit=limit) for _ in range(2))
    async with AsyncExitStack() as stack:
        assert (await opened(stack, news, "ada")).status_code == 200
        assert (await opened(stack, more, "ada")).status_code == 429
    assert repr(limit) == "<Limit 1 keys=0>"


@pytest.mark.parametrize("first", ["limit", "max_connections"])
async def test_a_refused_request_takes_no_place(first: str) -> None:
    """Neither of the two."""
    limits: dict[str, Any] = {"limit": Limit(1, key=user), "max_connections": 2}
    if first == "max_connections":
        limits = {"limit": Limit(2, key=user), "max_connections": 1}
    app = sse_app(lambda: idle(), **limits)
    for _ in range(3):
        async with AsyncExitStack() as stack:
            assert (await opened(stack, app, "ada")).status_code == 200
            for _ in range(3):
                status = (await opened(stack, app, "ada")).status_code
                assert status == (429 if first == "limit" else 503)
            if first == "limit":
                assert (await opened(stack, app, "ben")).status_code == 200
    assert repr(limits["limit"]).endswith("keys=0>")


@pytest.mark.parametrize("how", ["in the factory", "in the source", "a status", "a wrong factory"])
async def test_a_place_comes_back_however_a_stream_ends(how: str) -> None:
    limit = Limit(1, key=user)
    error: Exception = HTTPError(403) if how == "a status" else RuntimeError("meant to happen")

    async def source() -> AsyncIterator[str]:
        yield "a"
        raise error

    def factory() -> Any:
        if how == "in the source":
            return source()
        if how == "a wrong factory":
            return 5
        raise error

    app = sse_app(factory, limit=limit)
    for _ in range(3):
        try:
            async with connect(app, headers=cookie("ada")) as stream:
                assert stream.status_code in (200, 403, 500)  # that of a framework
                async for _ in stream:
                    pass
        except (RuntimeError, TypeError, HTTPError):
            pass
    assert repr(limit) == "<Limit 1 keys=0>"


async def test_head_takes_no_place() -> None:
    app = sse_app(lambda: idle(), limit=Limit(1, key=user))
    async with AsyncExitStack() as stack:
        await opened(stack, app, "ada")
        async with connect(app, method="HEAD", headers=cookie("ada")) as head:
            assert head.status_code == 200


async def test_a_key_may_refuse() -> None:
    def key(request: SSERequest) -> str:
        if (name := user(request)) is None:
            raise HTTPError(401)
        return name

    app = sse_app(lambda: idle(), limit=Limit(1, key=key))
    async with connect(app) as stream:
        assert stream.status_code == 401
    async with connect(app, headers=cookie("ada")) as stream:
        assert stream.status_code == 200


async def test_a_key_without_a_hash_says_so() -> None:
    app = sse_app(lambda: idle(), limit=Limit(1, key=lambda request: [user(request)]))  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match=r"key of a Limit must be hashable, not \[None\]"):
        async with connect(app) as stream:
            await stream.receive()


def test_threads_may_share_a_limit(anyio_backend: str) -> None:
    limit, request = Limit(10, key=user), SSERequest(http_scope(headers=[(b"cookie", b"user=a")]))
    most = taken = 0
    lock = threading.Lock()

    def taken_key() -> Any:
        """Without a hub, it waits for nothing."""
        step = limit.take(request)
        with pytest.raises(StopIteration) as ended:
            step.send(None)
        return ended.value.value

    def come_and_go() -> None:
        nonlocal most, taken
        for _ in range(500):
            try:
                key = taken_key()
            except HTTPError:
                continue
            with lock:
                taken += 1
                most = max(most, taken)
            with lock:
                taken -= 1
            limit.give_back(key)

    threads = [threading.Thread(target=come_and_go) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most <= 10
    assert repr(limit) == "<Limit 10 keys=0>"


@pytest.mark.parametrize(
    ("most", "key", "error"),
    [
        (0, user, ValueError),
        (-1, user, ValueError),
        (1.5, user, TypeError),
        (True, user, TypeError),
        ("5", user, TypeError),
        (5, None, TypeError),
        (5, "user", TypeError),
    ],
)
def test_what_is_no_limit(most: Any, key: Any, error: type[Exception], anyio_backend: str) -> None:
    with pytest.raises(error):
        Limit(most, key=key)


async def test_many_at_once() -> None:
    """Two hundred requests of a user, of which five get a stream."""
    app = sse_app(lambda: idle(), limit=Limit(5, key=user))
    statuses: list[int] = []
    over = anyio.Event()

    async def visit() -> None:
        async with connect(app, headers=cookie("ada")) as stream:
            statuses.append(stream.status_code)
            await over.wait()

    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(visit)
        with anyio.fail_after(20):
            while len(statuses) < 200:
                await anyio.sleep(0.001)
        over.set()
    assert sorted(statuses) == [200] * 5 + [429] * 195


async def test_with_a_hub_in_memory() -> None:
    """It has one node."""
    hub = Hub()
    app = sse_app(lambda: idle(), limit=Limit(1, key=user, hub=hub))
    async with AsyncExitStack() as stack:
        assert (await opened(stack, app, "ada")).status_code == 200
        assert (await opened(stack, app, "ada")).status_code == 429


def test_what_is_no_hub(anyio_backend: str) -> None:
    memory = MemoryLog()
    # It may be shared, for all that the hub knows.
    log: Any = type("Other", (), {"__getattr__": lambda self, name: getattr(memory, name)})
    for hub in (7, "redis://localhost", memory):
        with pytest.raises(TypeError, match="must be a Hub"):
            Limit(1, key=user, hub=hub)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="can't count for all nodes"):
        Limit(1, key=user, hub=Hub(log()))
    with pytest.raises(TypeError, match="name must be a str"):
        Limit(1, key=user, hub=Hub(), name=7)  # type: ignore[arg-type]
