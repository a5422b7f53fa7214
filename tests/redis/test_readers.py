"""The connections that wait for events: topics come and go while they wait."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from anyio.abc import TaskGroup

from sse_asgi.hub import Hub, HubError, Subscription
from sse_asgi.hub.redis import RedisLog, link, reader
from sse_asgi.hub.redis.reader import Entries

from .servers import RedisServer
from .test_cost import waiting
from .test_faults import DEADLINE, until

pytestmark = pytest.mark.anyio

#: Longer than any test takes.
LONG = 10 * DEADLINE


async def begin(hub: Hub, topic: str) -> Subscription:
    """Return a subscription that has its position in a topic."""
    subscription = hub.subscribe(topic, last_event_id="strange")
    assert b"gap" in await anext(subscription)
    return subscription


async def has(subscription: Subscription, data: str) -> None:
    with anyio.fail_after(DEADLINE):
        assert f"data: {data}\n".encode() in await anext(subscription)


async def test_a_topic_that_comes_while_a_reader_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read at once: the bell ends the wait of the others. That costs one more read."""
    monkeypatch.setattr(reader, "BLOCK", LONG)
    with RedisServer() as server:
        async with Hub(RedisLog(server.url)) as here, Hub(RedisLog(server.url)) as there:
            subscriptions: dict[str, Subscription] = {}
            for number in range(5):
                topic = f"t{number}"
                subscriptions[topic] = await begin(here, topic)
                await until(lambda: len(waiting(server)) == 1)
                # The new one first: an event of another would end the wait, too.
                for each, subscription in reversed(subscriptions.items()):
                    data = f"{each} {number}"
                    await there.publish(each, data)
                    await has(subscription, data)
            await until(lambda: len(waiting(server)) == 1)
            before = server.calls("xread")
            await anyio.sleep(0.2)
            assert server.calls("xread") <= before + 1
            bells = server.command("KEYS", "*:bell:*")
            assert len(bells) == 1
            assert server.command("PTTL", *bells) > 0  # it does not stay for ever
            for subscription in subscriptions.values():
                subscription.close()


async def test_topics_that_are_left_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "STREAMS", 3)
    with RedisServer() as server:
        async with Hub(RedisLog(server.url)) as hub:
            stays = await begin(hub, "stays")
            for number in range(12):
                topic = f"t{number}"
                subscription = await begin(hub, topic)
                await hub.publish(topic, topic)
                await has(subscription, topic)
                subscription.close()
            await hub.publish("stays", "x")
            await has(stays, "x")
            await until(lambda: len(waiting(server)) == 1)
            stays.close()


class Failing:
    """A stream whose first reviews fail."""

    key, last, lasts = "failing", "0-0", False

    def __init__(self) -> None:
        self.reviews = 0

    def take(self, entries: Entries) -> None:
        raise AssertionError("there are none")

    async def review(self) -> None:
        self.reviews += 1
        if self.reviews < 3:
            raise HubError("not now")


async def test_a_review_that_fails_is_soon_repeated(
    redis_url: str, new_prefix: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cluster the client stays, and a node may be away for longer than a review tries."""
    monkeypatch.setattr(reader, "BLOCK", 0.05)
    way, stream = link.Link(redis_url, DEADLINE), Failing()

    async def serve(client: link.Client, tasks: TaskGroup) -> None:
        reads = reader.Reader(way, 0, new_prefix())
        reads.add(stream)
        await reads.run(client)

    async with anyio.create_task_group() as tasks:
        await tasks.start(way.run, serve)
        await until(lambda: stream.reviews == 3)
        tasks.cancel_scope.cancel()
