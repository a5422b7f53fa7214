"""A limit for all nodes of a hub on Redis."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sse_asgi import HTTPError, HubClosedError, Limit, SSERequest, sse_app
from sse_asgi.hub import Hub
from sse_asgi.hub.redis import RedisLog, places
from sse_asgi.testing import connect

from ..streams import http_scope
from ..test_limits import cookie, idle, opened, user
from .faulty_proxy import FaultyProxy
from .servers import Cluster, RedisServer

pytestmark = [
    pytest.mark.anyio,
    # coredis, where a connection can't be made
    pytest.mark.filterwarnings("ignore:Unclosed <Memory:ResourceWarning"),
]

NewHub = Callable[..., Hub]

DEADLINE = 20.0


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node is taken to be dead sooner."""
    monkeypatch.setattr(places, "LEASE", 1.0)


def app_at(hub: Hub, most: int = 2, **options: Any) -> Any:
    return sse_app(lambda: idle(), limit=Limit(most, key=user, hub=hub, **options))


async def until_one_more(stack: AsyncExitStack, app: Any, name: str) -> None:
    """There is a place, soon."""
    with anyio.fail_after(DEADLINE):
        while (await opened(stack, app, name)).status_code != 200:
            await anyio.sleep(0.02)


@pytest.mark.usefixtures("through_every_entry_point")
async def test_two_nodes_count_together(new_hub: NewHub) -> None:
    async with new_hub() as hub, new_hub() as other:
        here, there = app_at(hub), app_at(other)
        async with AsyncExitStack() as stack:
            first = await opened(stack, here, "ada")
            await opened(stack, there, "ada")
            for app in (here, there):
                refused = await opened(stack, app, "ada")
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) > 0
            assert (await opened(stack, there, "ben")).status_code == 200
            await first.disconnect()
            await until_one_more(stack, there, "ada")
            assert (await opened(stack, here, "ada")).status_code == 429


async def test_many_at_once(new_hub: NewHub) -> None:
    async with new_hub() as hub, new_hub() as other:
        limits = [Limit(5, key=user, hub=each) for each in (hub, other)]
        request = SSERequest(http_scope(headers=[(b"cookie", b"user=a")]))
        taken: list[Any] = []
        refused: list[int] = []

        async def take(limit: Limit) -> None:
            try:
                taken.append((limit, await limit.take(request)))
            except HTTPError as exc:
                refused.append(exc.status_code)

        for _ in range(3):
            async with anyio.create_task_group() as tasks:
                for number in range(60):
                    tasks.start_soon(take, limits[number % 2])
            assert len(taken) == 5
            assert refused == [429] * 55
            refused.clear()
            for limit, key in taken:
                limit.give_back(key)
            taken.clear()
            await hub.position("t")  # what was given back is done by then
            await other.position("t")


async def test_limits_of_another_name_or_key(new_hub: NewHub) -> None:
    async with new_hub() as hub:
        apps = [app_at(hub, 1), app_at(hub, 1, name="other"), app_at(hub, 1)]
        async with AsyncExitStack() as stack:
            statuses = [(await opened(stack, app, "ada")).status_code for app in apps]
            assert statuses == [200, 200, 429]
            long = "ada" * 2000
            assert (await opened(stack, apps[0], long)).status_code == 200
            assert (await opened(stack, apps[2], long)).status_code == 429
            assert (await opened(stack, apps[2], long[:-1])).status_code == 200


async def test_on_a_cluster(cluster: Cluster, new_prefix: Callable[[], str]) -> None:
    prefix = new_prefix()
    hubs = [Hub(RedisLog(cluster.url, prefix=prefix)) for _ in range(2)]
    async with hubs[0], hubs[1], AsyncExitStack() as stack:
        apps = [app_at(hub, 1) for hub in hubs]
        for name in map(str, range(20)):
            assert (await opened(stack, apps[0], name)).status_code == 200
            assert (await opened(stack, apps[1], name)).status_code == 429


@pytest.mark.usefixtures("short")
async def test_places_are_renewed_and_those_of_a_dead_node_are_free(new_hub: NewHub) -> None:
    async with new_hub() as other, AsyncExitStack() as stack:
        there = app_at(other)
        async with new_hub() as hub:
            here = app_at(hub)
            for _ in range(2):
                await opened(stack, here, "ada")
            await anyio.sleep(2.5)
            assert (await opened(stack, there, "ada")).status_code == 429
        # It has gone without giving them back.
        await until_one_more(stack, there, "ada")
        assert (await opened(stack, there, "ada")).status_code == 200
        assert (await opened(stack, there, "ada")).status_code == 429


@pytest.mark.usefixtures("short")
async def test_redis_has_lost_everything(server: RedisServer) -> None:
    async with Hub(RedisLog(server.url)) as hub, Hub(RedisLog(server.url)) as other:
        async with AsyncExitStack() as stack:
            await opened(stack, app_at(hub, 1), "ada")
            server.command("FLUSHALL")
            with anyio.fail_after(DEADLINE):
                while not server.command("DBSIZE"):
                    await anyio.sleep(0.02)
            assert (await opened(stack, app_at(other, 1), "ada")).status_code == 429
        with anyio.fail_after(DEADLINE):  # and nothing stays
            while server.command("DBSIZE"):
                await anyio.sleep(0.02)


async def test_redis_is_away(server: RedisServer) -> None:
    """Each process counts its own streams, and no request waits for long."""
    with FaultyProxy(server.port) as proxy:
        async with Hub(RedisLog(proxy.url, timeout=30)) as hub, AsyncExitStack() as stack:
            app = app_at(hub)
            await opened(stack, app, "ada")
            proxy.silence()
            with anyio.fail_after(10):
                assert (await opened(stack, app, "ada")).status_code == 200
                assert (await opened(stack, app, "ada")).status_code == 429
            await anyio.to_thread.run_sync(proxy.resume)
            proxy.cut()


async def test_a_hub_that_is_not_open(new_hub: NewHub) -> None:
    with pytest.raises(HubClosedError, match="not open"):
        async with connect(app_at(new_hub()), headers=cookie("ada")):
            pass


@pytest.mark.parametrize("key", [1.5, ("a",), b"a"])
async def test_keys_that_are_no_text(new_hub: NewHub, key: Any) -> None:
    async with new_hub() as hub:
        app = sse_app(lambda: idle(), limit=Limit(1, key=lambda request: key, hub=hub))
        with pytest.raises(TypeError, match="must be a str or int"):
            async with connect(app):
                pass


async def test_what_is_the_same_key(new_hub: NewHub) -> None:
    async with new_hub() as hub, AsyncExitStack() as stack:
        for key, status in ((1, 200), ("1", 200), (1, 429), (None, 200), (None, 200)):
            app = sse_app(lambda: idle(), limit=Limit(1, key=lambda request, k=key: k, hub=hub))  # type: ignore[misc]
            stream = await stack.enter_async_context(connect(app))
            assert stream.status_code == status


async def test_a_cancelled_request_takes_no_place(new_hub: NewHub) -> None:
    async with new_hub() as hub, new_hub() as other:
        limit, request = Limit(1, key=user, hub=hub), SSERequest(http_scope())
        limit.key = lambda request: "ada"
        for _ in range(20):
            with anyio.move_on_after(0.0005):
                limit.give_back(await limit.take(request))
        await hub.position("t")
        async with AsyncExitStack() as stack:
            await until_one_more(stack, app_at(other, 1), "ada")
