"""Whether the log can be reached, and what an observer sees of the commands to Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from sse_asgi import HubClosedError, HubError, Observer, Tally
from sse_asgi.hub import Hub, health_app
from sse_asgi.hub.redis import RedisLog

from ..test_health import ask
from .servers import Cluster, RedisServer, hurry

pytestmark = pytest.mark.anyio


async def test_a_hub_is_ready_while_it_is_open(
    redis_url: str, new_prefix: Callable[[], str]
) -> None:
    hub = Hub(RedisLog(redis_url, prefix=new_prefix()))
    app = health_app(hub)
    assert (await ask(app)).status_code == 503
    with pytest.raises(HubClosedError):
        await hub.ping()
    async with hub:
        response = await ask(app)
        assert (response.status_code, response.json()["hubs"][0]["log"]) == (200, "RedisLog")
    assert (await ask(app)).status_code == 503


async def test_a_server_that_goes_and_comes_back(server: RedisServer) -> None:
    tally = Tally()
    hub = Hub(RedisLog(server.url), observer=tally)
    app = health_app(hub, timeout=1)
    async with hub:
        await hurry(hub)
        assert (await ask(app)).status_code == 200
        server.kill()
        assert (await ask(app)).status_code == 503
        with pytest.raises(HubError):
            await hub.ping()
        server.start()
        with anyio.fail_after(30):
            while (await ask(app)).status_code != 200:
                await anyio.sleep(0.1)


async def test_a_cluster(cluster: Cluster) -> None:
    async with Hub(RedisLog(cluster.url)) as hub:
        assert (await ask(health_app(hub))).status_code == 200


async def test_round_trips_are_counted(redis_url: str, new_prefix: Callable[[], str]) -> None:
    seen: list[tuple[float, Any]] = []

    class Seen(Tally):
        def hub_round_trip(self, hub: Any, seconds: float, error: BaseException | None) -> None:
            seen.append((seconds, error))

    tally = Seen()
    async with Hub(RedisLog(redis_url, prefix=new_prefix()), observer=tally) as hub:
        await hub.publish("t", {"data": 1})
        await hub.publish_many("t", [{"data": 2}, {"data": 3}])
        (stats,) = tally.hubs
        assert (stats.log, stats.published) == ("RedisLog", 3)
        assert stats.round_trips == len(seen) >= 2
        assert stats.waited == pytest.approx(sum(seconds for seconds, _ in seen))
        subscription = hub.subscribe("t", history=3)
        assert b"data: 3" in await anext(subscription)
        await hub.publish("t", {"data": 4})
        assert b"data: 4" in await anext(subscription)
        assert stats.delivered == 1
        await subscription.aclose()


async def test_nobody_is_behind_in_a_topic_without_events(
    redis_url: str, new_prefix: Callable[[], str]
) -> None:
    """There a position is a moment, and two subscribers come at different ones."""
    tally = Tally()
    async with Hub(RedisLog(redis_url, prefix=new_prefix()), observer=tally) as hub:
        (stats,) = tally.hubs
        got: list[bytes] = []

        async def subscribe() -> None:
            got.append(await anext(hub.subscribe("t")))

        async with anyio.create_task_group() as tasks:
            for number in (1, 2):
                tasks.start_soon(subscribe)
                while hub.subscribers("t") < number:
                    await anyio.sleep(0.01)
                await anyio.sleep(0.1)
            assert stats.lag == 0
            while len(got) < 2:  # on a busy machine one may begin after the first event
                await hub.publish("t", {"data": 1})
                await anyio.sleep(0.1)
        assert stats.lag == 0


async def test_a_command_that_fails_is_counted(
    redis_url: str, new_prefix: Callable[[], str]
) -> None:
    tally = Tally()
    async with Hub(RedisLog(redis_url, prefix=new_prefix()), observer=tally) as hub:
        await hub.ping()
        (stats,) = tally.hubs
        assert (stats.round_trips, stats.failures) == (1, 0)

        async def refused(client: Any) -> Any:
            return await client.execute_command("NO-SUCH-COMMAND")

        log: Any = hub._log
        with pytest.raises(HubError):
            await log._link.start(refused).result()
        assert (stats.round_trips, stats.failures) == (2, 1)


async def test_an_observer_that_raises_harms_no_command(
    redis_url: str, new_prefix: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Observer):
        def hub_round_trip(self, hub: Any, seconds: float, error: BaseException | None) -> None:
            raise ZeroDivisionError

        def hub_created(self, hub: Any) -> None:
            raise ZeroDivisionError

    async with Hub(RedisLog(redis_url, prefix=new_prefix()), observer=Broken()) as hub:
        assert await hub.publish("t", {"data": 1})
        await hub.ping()
    assert "hub_created of the observer raised" in caplog.text
    assert "hub_round_trip of the observer raised" in caplog.text
