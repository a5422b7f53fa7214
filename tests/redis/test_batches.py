"""Appends that wait at the same time share round trips to Redis, and many events in one call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_asgi.hub import EventTooLargeError, Hub, HubClosedError, HubError
from sse_asgi.hub.redis import RedisLog, batches

from ..test_hub_many import STEPS, everything, interleave, offsets
from .faulty_proxy import FaultyProxy, Moment
from .servers import Cluster, RedisServer

pytestmark = pytest.mark.anyio


async def publish_at_once(hub: Hub, topics: list[str], count: int) -> dict[str, list[str]]:
    """Publish so many events to each topic, all at the same time; return their ids."""
    ids: dict[str, list[str]] = {topic: [] for topic in topics}

    async def publish(topic: str, number: int) -> None:
        ids[topic].append(await hub.publish(topic, str(number)))

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            for topic in topics:
                tasks.start_soon(publish, topic, number)
    return ids


# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("topics", [1, 20])
async def test_those_that_wait_share_a_round_trip(server: RedisServer, topics: int) -> None:
    names = [f"t{number}" for number in range(topics)]
    async with Hub(RedisLog(server.url)) as hub:
        await hub.publish_many("other", ["x", "y"])  # loads the scripts
        await hub.publish("other", "z")
        before = server.calls("evalsha")
        ids = await publish_at_once(hub, names, 200 // topics)
        assert server.calls("evalsha") - before <= 3
    for own in ids.values():
        assert sorted(offsets(own)) == list(range(1, 200 // topics + 1))


async def test_one_alone_waits_for_nobody(server: RedisServer) -> None:
    async with Hub(RedisLog(server.url)) as hub:
        before = server.calls("evalsha")
        for number in range(10):
            assert offsets([await hub.publish("t", "x")]) == [number + 1]
        assert server.calls("evalsha") - before in (10, 11)  # the first time it is not known


async def test_a_batch_is_bounded(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of events and by bytes."""
    async with Hub(RedisLog(server.url)) as hub:
        await publish_at_once(hub, ["other"], 2)
        for bound, least in (("EVENTS", 10), ("BYTES", 10)):
            monkeypatch.setattr(
                batches, bound, 10 if bound == "EVENTS" else 10 * len("data: 0\n\n")
            )
            before = server.calls("evalsha")
            await publish_at_once(hub, ["t"], 100)
            assert least <= server.calls("evalsha") - before <= 2 * least
            monkeypatch.undo()


async def test_a_call_of_many_is_one_round_trip(server: RedisServer) -> None:
    async with Hub(RedisLog(server.url)) as hub:
        await hub.publish_many("other", ["x", "y"])
        before = server.calls("evalsha")
        ids = await hub.publish_many("t", [str(number) for number in range(250)])
        assert server.calls("evalsha") - before == 1
        assert offsets(ids) == list(range(1, 251))


async def test_what_is_in_a_batch_arrives_unchanged(server: RedisServer) -> None:
    """Also what has no length, or is not text."""
    async with Hub(RedisLog(server.url)) as hub:
        data = ["", "\x00", "\u00e4\u2028\U0001f600", "x" * 70_000, "a\nb", "", "1"]
        ids = await hub.publish_many("t\u00e4", [*data, "last"], keys=[None, "\u00e4", *[None] * 6])
        assert await everything(hub, "t\u00e4") == list(enumerate([*data, "last"], 1))
        assert await hub.publish("t\u00e4", "again", key="\u00e4") == ids[1]


# -- errors ----------------------------------------------------------------------------------------


async def test_a_topic_that_is_refused_fails_alone(server: RedisServer) -> None:
    async with Hub(RedisLog(server.url)) as hub:
        await hub.publish_many("other", ["x", "y"])
        log = RedisLog(server.url)
        server.command("SET", log.keys.log("broken"), "no stream")
        errors: list[HubError] = []
        ids: list[str] = []

        async def publish(topic: str, number: int) -> None:
            try:
                ids.append(await hub.publish(topic, str(number)))
            except HubError as exc:
                errors.append(exc)

        async def too_large() -> None:
            with pytest.raises(EventTooLargeError):
                await hub.publish("t1", "x" * 2**20)

        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(publish, ("t1", "broken", "t2")[number % 3], number)
                tasks.start_soon(too_large)
        assert len(errors) == 10
        assert all("refused" in str(error) for error in errors)
        assert sorted(offsets(ids)) == sorted([*range(1, 11)] * 2)
        with pytest.raises(HubError, match="refused"):
            await hub.publish_many("broken", ["x", "y"])


async def test_a_user_who_may_not_use_all_topics(server: RedisServer) -> None:
    """Redis then refuses the whole batch."""
    server.command("ACL", "SETUSER", "default", "resetkeys", "~sse_asgi:*:log:t*",
                   "~sse_asgi:*:keys:t*", "~sse_asgi:*:topics", "~sse_asgi:*:runs")  # fmt: skip
    async with Hub(RedisLog(server.url)) as hub:
        results: list[object] = []

        async def publish(topic: str) -> None:
            try:
                results.append(await hub.publish(topic, "x"))
            except HubError as exc:
                results.append(exc)

        async with anyio.create_task_group() as tasks:
            for topic in ("t1", "u", "t2"):
                tasks.start_soon(publish, topic)
        assert sorted(type(result).__name__ for result in results) == ["HubError", "str", "str"]


async def test_the_scripts_are_gone(server: RedisServer) -> None:
    """As after a restart, or SCRIPT FLUSH."""
    async with Hub(RedisLog(server.url)) as hub:
        for number in range(3):
            ids = await hub.publish_many("t", ["x"] * 10)
            assert offsets(ids) == list(range(number * 11 + 1, number * 11 + 11))
            server.command("SCRIPT", "FLUSH")
            await hub.publish("t", "y")
            server.command("SCRIPT", "FLUSH")


async def test_limits_that_differ(redis_url: str, new_prefix: Callable[[], str]) -> None:
    """A process with lower limits does not store again what one with higher ones has stored."""
    prefix = new_prefix()
    async with (
        Hub(RedisLog(redis_url, prefix=prefix)) as high,
        Hub(RedisLog(redis_url, prefix=prefix, max_events=10)) as low,
    ):
        keys = [str(number) for number in range(100)]
        ids = await high.publish_many("t", keys, keys=keys)
        assert await low.publish("t", "50", key="50") == ids[50]
        assert await low.publish_many("t", ["50", "51"], keys=["50", "51"]) == ids[50:52]


# -- connections that fail -------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "within", "after"])
@pytest.mark.parametrize("topics", [["t"], ["t", "u", "v"]])
async def test_a_connection_is_cut_in_a_batch(
    server: RedisServer, moment: Moment, topics: list[str]
) -> None:
    """Each event is stored once, and those of a call next to each other."""
    with FaultyProxy(server.port) as proxy:
        async with Hub(RedisLog(proxy.url, timeout=20)) as hub:
            for topic in topics:
                await hub.publish(topic, "first")
            proxy.cut_at("the one", moment)
            many: dict[str, list[str]] = {}

            async def publish_many(topic: str) -> None:
                many[topic] = await hub.publish_many(topic, [f"the one {n}" for n in range(5)])

            ids: dict[str, list[str]] = {}
            async with anyio.create_task_group() as tasks:
                for topic in topics:
                    tasks.start_soon(publish_many, topic)
                ids = await publish_at_once(hub, topics, 20)
            assert proxy.cuts == 1
            for topic in topics:
                begin = offsets(many[topic])[0]
                assert offsets(many[topic]) == list(range(begin, begin + 5))
                found = sorted(offsets([*ids[topic], *many[topic]]))
                assert found == list(range(2, 27))
                await hub.publish(topic, "last")
                stored = [data for _, data in await everything(hub, topic)]
                assert len(stored) == len(set(stored)) == 27


async def test_the_server_is_killed_in_the_middle() -> None:
    """Of a large call: called again with the same keys, it stores each event once."""
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        async with Hub(RedisLog(server.url, timeout=1, max_events=20_000)) as hub:
            data = [str(number) for number in range(10_000)]
            failed = anyio.Event()

            async def publish() -> None:
                with pytest.raises(HubError):
                    await hub.publish_many("t", data, keys=data)
                failed.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(publish)
                while offsets([await hub.position("t")])[0] < 500:
                    await anyio.sleep(0.001)
                await anyio.to_thread.run_sync(server.kill)
                await failed.wait()
            await anyio.to_thread.run_sync(server.start)
            with anyio.fail_after(20):
                while True:
                    try:
                        ids = await hub.publish_many("t", data, keys=data)
                    except HubError:
                        continue
                    break
            assert offsets(ids) == list(range(1, 10_001))


async def test_a_server_that_does_not_answer_holds_nobody_up_twice(server: RedisServer) -> None:
    """Who comes while a batch waits for an answer fails as soon as others: after the timeout."""
    async with Hub(RedisLog(server.url, timeout=1)) as hub:
        await hub.publish("t", "x")
        took: list[float] = []

        async def publish() -> None:
            began = anyio.current_time()
            with pytest.raises(HubError, match="within"):
                await hub.publish("t", "x")
            took.append(anyio.current_time() - began)

        server.pause()
        try:
            async with anyio.create_task_group() as tasks:
                for _ in range(40):
                    tasks.start_soon(publish)
                    await anyio.sleep(0.02)
        finally:
            server.resume()
        assert len(took) == 40
        assert min(took) > 0.9


@pytest.mark.parametrize("wait", [0, 1, 3, 10])
async def test_the_hub_is_closed_in_the_middle(server: RedisServer, wait: int) -> None:
    """All that are under way end, and the hub can be opened again."""
    hub = Hub(RedisLog(server.url))
    for _ in range(3):
        ended = 0

        async def publish(number: int) -> None:
            nonlocal ended
            try:
                await (hub.publish("t", "x") if number % 2 else hub.publish_many("t", ["x"] * 1000))
            except HubClosedError:
                ended += 1

        async with anyio.create_task_group() as tasks:
            async with hub:
                await hub.publish("t", "x")
                for number in range(30):
                    tasks.start_soon(publish, number)
                for _ in range(wait):
                    await checkpoint()
        assert ended
    async with hub:
        await hub.publish("t", "x")


@pytest.mark.parametrize("steps", [*range(0, 40, 3)])
async def test_who_are_cancelled_leave_the_others(server: RedisServer, steps: int) -> None:
    """What they have published is stored or not, and the others are answered."""
    async with Hub(RedisLog(server.url)) as hub:
        ids: list[str] = []

        async def publish(number: int) -> None:
            ids.append(await hub.publish("t", str(number)))

        async with anyio.create_task_group() as others:
            for number in range(10):
                others.start_soon(publish, number)
            async with anyio.create_task_group() as tasks:
                for number in range(10, 20):
                    tasks.start_soon(publish, number)
                for _ in range(steps):
                    await checkpoint()
                tasks.cancel_scope.cancel()
        await hub.publish("t", "last")
        stored = await everything(hub, "t")
        assert [number for number, _ in stored] == list(range(1, len(stored) + 1))
        assert len(set(stored)) == len(stored)
        assert {str(number) for number in range(10)} <= {data for _, data in stored}


# -- a cluster -------------------------------------------------------------------------------------


async def test_topics_of_many_slots(cluster: Cluster, new_prefix: Callable[[], str]) -> None:
    """Each shard has its own batches, before it is known that it is a cluster and afterwards."""
    names = [f"t{number}" for number in range(40)]
    async with Hub(RedisLog(cluster.url, prefix=new_prefix(), timeout=20)) as hub:
        for count in (0, 1):
            ids = await publish_at_once(hub, names, 10)
            for own in ids.values():
                assert sorted(offsets(own)) == list(range(10 * count + 1, 10 * count + 11))
        many: list[list[str]] = []

        async def publish_many(topic: str) -> None:
            many.append(await hub.publish_many(topic, ["x"] * 300))

        async with anyio.create_task_group() as tasks:
            for topic in names[:5]:
                tasks.start_soon(publish_many, topic)
        assert [offsets(ids) for ids in many] == [list(range(21, 321))] * 5


async def test_a_cluster_takes_the_place_of_a_server(
    cluster: Cluster, new_prefix: Callable[[], str]
) -> None:
    """What was collected for the server has topics of several slots."""
    log = RedisLog(cluster.url, prefix=new_prefix(), timeout=20)
    async with Hub(log) as hub:
        await hub.publish("t", "x")
        log._link.is_single = True  # as if its client had been that of a server until now
        ids = await publish_at_once(hub, [f"t{number}" for number in range(20)], 3)
        for own in ids.values():
            assert sorted(offsets(own)) == [1, 2, 3]


# -- any interleaving ------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["server", "cluster", "cut"])
def test_any_interleaving(
    anyio_backend: str, where: str, new_prefix: Callable[[], str], request: pytest.FixtureRequest
) -> None:
    """Nothing is lost or twice, and the order of each publisher is kept."""
    if where == "cluster" and anyio_backend == "trio":
        pytest.skip("on asyncio")
    node = request.getfixturevalue("cluster" if where == "cluster" else "server")
    with start_blocking_portal(anyio_backend) as portal:

        @given(publishers=st.lists(STEPS, min_size=1, max_size=4), topics=st.integers(1, 3))
        @settings(max_examples=25, deadline=None)
        def check(publishers: list[Any], topics: int) -> None:
            async def run() -> None:
                log = RedisLog(node.url, prefix=new_prefix(), timeout=20)
                async with Hub(log) as hub, anyio.create_task_group() as tasks:
                    for number in range(topics):
                        tasks.start_soon(partial(interleave, hub, f"t{number}", publishers))
                    if where == "cut":
                        for _ in range(3):
                            await anyio.sleep(0.01)
                            node.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

            portal.call(run)

        check()
