"""A log that loses deliveries, repeats them, or delivers late: its subscribers miss nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sse_asgi.hub import Hub, MemoryLog, Record
from sse_asgi.hub.log import Created, Deliver, Renewed
from sse_asgi.testing import Connection, connect

from .test_hub import back, nothing_more, receive, stream_of

pytestmark = pytest.mark.anyio

#: One topic, several, and a pattern: a subscription reads each of these in its own way.
NAMES = pytest.mark.parametrize("names", [("news",), ("news", "more"), ("n*",)])


class Unreliable(MemoryLog):
    """A log that keeps all events, and delivers only what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        #: Whether it delivers.
        self.delivers = True
        #: All that it has delivered, or should have.
        self.all: list[Record] = []

    def attach(self, deliver: Deliver, created: Created, renewed: Renewed) -> None:
        self._pass_on = deliver
        super().attach(self._note, created, renewed)

    def _note(self, topic: str, records: Sequence[Record]) -> None:
        self.all += records
        if self.delivers:
            self._pass_on(topic, records)

    def deliver(self, *numbers: int) -> None:
        """Deliver events of the topic "news", whether they were delivered or not."""
        self._pass_on("news", [self.all[number] for number in numbers])


async def begin(names: tuple[str, ...]) -> tuple[Unreliable, Hub, dict[str, str]]:
    """Make a hub with an event; and the header of a client that has had it."""
    log = Unreliable()
    hub = Hub(log)
    await publish(hub, 0)
    topics = [name for name in names if "*" not in name] or ["news"]
    return log, hub, back(await hub.position(*topics))


async def publish(hub: Hub, *numbers: int) -> None:
    for number in numbers:
        await hub.publish("news", str(number))


async def has(stream: Connection, *numbers: int) -> None:
    """Check that these are the next events, and that there are no more."""
    assert await receive(stream, len(numbers)) == [str(number) for number in numbers]
    await nothing_more(stream)


@NAMES
@pytest.mark.parametrize("lost", [[1], [3], [1, 3], [2, 3, 4]])
async def test_deliveries_that_are_lost(names: tuple[str, ...], lost: list[int]) -> None:
    """The next one reveals them. They are read from the log, without a gap event."""
    log, hub, headers = await begin(names)
    async with connect(stream_of(hub, *names), headers=headers) as stream:
        await nothing_more(stream)
        missing: list[int] = []
        for number in range(1, 6):
            log.delivers = number not in lost
            await publish(hub, number)
            missing.append(number)
            if log.delivers:
                await has(stream, *missing)
                missing.clear()
        # It is the same for a client that comes back.
        async with connect(stream_of(hub, *names), headers=headers) as other:
            await has(other, 1, 2, 3, 4, 5)
        await publish(hub, 6)
        await has(stream, 6)


@NAMES
async def test_deliveries_that_are_lost_while_a_subscriber_is_behind(
    names: tuple[str, ...],
) -> None:
    log, hub, headers = await begin(names)
    async with (
        connect(stream_of(hub, *names), headers=headers) as stream,
        connect(stream_of(hub, *names), headers=headers) as slow,
    ):
        await nothing_more(stream)
        slow.stall()
        await publish(hub, 1, 2)
        await has(stream, 1, 2)
        log.delivers = False
        await publish(hub, 3)
        log.delivers = True
        await publish(hub, 4)
        await has(stream, 3, 4)
        slow.resume()
        await has(slow, 1, 2, 3, 4)


@NAMES
async def test_deliveries_that_come_twice_or_too_late(names: tuple[str, ...]) -> None:
    log, hub, headers = await begin(names)
    async with connect(stream_of(hub, *names), headers=headers) as stream:
        await nothing_more(stream)
        await publish(hub, 1, 2)
        log.deliver(1)
        log.deliver(1, 2)
        await has(stream, 1, 2)
        log.deliver(2)
        log.delivers = False
        await publish(hub, 3, 4)
        log.deliver(4)  # 3 is read from the log
        await has(stream, 3, 4)
        log.deliver(3)
        log.deliver(2, 3, 4)
        await nothing_more(stream)
        log.delivers = True
        await publish(hub, 5)
        await has(stream, 5)
        async with connect(stream_of(hub, *names), headers=headers) as other:
            await has(other, 1, 2, 3, 4, 5)
