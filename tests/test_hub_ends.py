"""A topic that ends, in memory: `Hub.publish` with `final`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from sse_asgi.hub import Hub, MemoryLog, Position, TopicEndedError
from sse_asgi.testing import connect

from .at_once import Cycle
from .hub_ends import Ends, ends, until_begun
from .streams import http_scope, on_mock_clock
from .test_hub import back, receive, stream_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    async with Hub() as hub:
        yield hub


@pytest.fixture
def other(hub: Hub) -> Hub:
    return hub


class TestInMemory(Ends):
    """The log is in this process."""


async def test_from_a_thread(hub: Hub) -> None:
    await hub.position("t")
    async with connect(stream_of(hub, "t")) as stream:
        await until_begun(hub, "t")

        def publish() -> None:
            hub.publish_from_thread("t", "a", final=True)

        await anyio.to_thread.run_sync(publish)
        assert await receive(stream, 1) == ["a"]
        await ends(stream)


def test_an_end_outlives_its_event() -> None:
    """The events expire; the topic has ended as long as it is known."""

    async def main() -> None:
        hub = Hub(max_age=60)
        final = await hub.publish("t", "a", final=True)
        await anyio.sleep(100)
        async with connect(stream_of(hub, "t"), headers=back(final)) as stream:
            assert stream.status_code == 204
        with pytest.raises(TopicEndedError):
            await hub.publish("t", "b")
        await anyio.sleep(1000)  # it is forgotten, and the next of its name is another topic
        assert await hub.publish("u", "x")
        assert await hub.publish("t", "b") != final
        async with connect(stream_of(hub, "t"), headers=back(final)) as stream:
            assert (await stream.receive()).event == "gap"

    on_mock_clock(main)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_events_that_are_sent_at_once(hub: Hub) -> None:
    """No task is woken for an event, and for the end one is."""
    cycle = Cycle()
    async with anyio.create_task_group() as tasks:
        app: Any = stream_of(hub, "t")
        tasks.start_soon(app, http_scope(), cycle.receive, cycle.send)
        await until_begun(hub, "t")
        for number in range(10):
            await hub.publish("t", str(number), final=number == 9)
            await anyio.lowlevel.checkpoint()
    assert hub.subscribers() == 0
    assert cycle.body.endswith(b"data: 9\n\n")


async def test_a_log_that_knows_nothing_of_ends() -> None:
    """One that was written before there were any. It does all else."""

    class Old(MemoryLog):
        has_ended: Any = None

        async def append(  # type: ignore[override]
            self,
            topic: str,
            body: bytes,
            *,
            key: str | None = None,
            collapse_key: str | None = None,
        ) -> Position:
            return await super().append(topic, body, key=key, collapse_key=collapse_key)

    log: Any = Old()
    hub = Hub(log)
    first = await hub.publish("t", "a")
    await hub.publish("t", "b")
    async with connect(stream_of(hub, "t"), headers=back(first)) as stream:
        assert await receive(stream, 1) == ["b"]
    with pytest.raises(TypeError):
        await hub.publish("t", "c", final=True)


@pytest.mark.parametrize("policy", ["gap", "disconnect", "latest"])
async def test_kicked_when_events_are_missing(policy: Any) -> None:
    """One that would be disconnected at a gap gets no gap, and the last event all the same."""
    hub = Hub(max_events=3)
    await hub.publish("t", "first")
    async with connect(stream_of(hub, "t", policy=policy)) as stream:
        await until_begun(hub, "t")
        await hub.publish("t", "0")
        assert await receive(stream, 1) == ["0"]
        stream.stall()
        for number in range(1, 20):
            await hub.publish("t", str(number))
        hub.kick(lambda subscription: True, last="bye")
        stream.resume()
        events = [(event.event, event.data) async for event in stream]
    assert events[-1] == ("message", "bye")
    if policy == "disconnect":
        assert "gap" not in {name for name, _ in events}
        assert ("message", "19") not in events
    else:
        assert "gap" in {name for name, _ in events}
        assert events[-4:-1] == [("message", str(number)) for number in (17, 18, 19)]
