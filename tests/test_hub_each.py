"""A subscriber that gets other events than the rest, or fewer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from sse_asgi import CloseReason, ServerSentEvent, sse_app
from sse_asgi.hub import Hub
from sse_asgi.testing import connect

from .streams import Recorder
from .test_hub import back, gap, nothing_more, receive, stream_of

pytestmark = pytest.mark.anyio

Event = ServerSentEvent[str]

TOPICS = pytest.mark.parametrize("names", [("news",), ("news", "more"), ("n*",)])


def even(event: Event) -> Event | None:
    return event if int(event.data or 0) % 2 == 0 else None


@TOPICS
async def test_who_does_not_want_all(names: tuple[str, ...]) -> None:
    """Live, and after a reconnection; others get all."""
    hub = Hub()
    await hub.publish("news", "0")
    app = stream_of(hub, *names, each=even)
    async with connect(app) as some, connect(stream_of(hub, *names)) as everything:
        await anyio.wait_all_tasks_blocked()
        for number in range(1, 7):
            await hub.publish("news", str(number))
        assert await receive(everything, 6) == ["1", "2", "3", "4", "5", "6"]
        assert await receive(some, 3) == ["2", "4", "6"]
        last = some.last_event_id
    for number in range(7, 11):
        await hub.publish("news", str(number))
    async with connect(app, headers=back(last)) as some:
        assert await receive(some, 2) == ["8", "10"]
        await nothing_more(some)


@TOPICS
async def test_nothing_for_a_long_time(names: tuple[str, ...]) -> None:
    """More than is read at a time; and then something."""
    hub = Hub(max_events=100_000, max_bytes=2**24)
    await hub.publish("news", "start")
    before = await hub.position(*[name for name in names if "*" not in name] or ["news"])
    for _ in range(3_000):
        await hub.publish("news", {"data": "x" * 100, "event": "noise"})
    await hub.publish("news", "here")

    def quiet(event: Event) -> Event | None:
        return None if event.event == "noise" else event

    async with connect(stream_of(hub, *names, each=quiet), headers=back(before)) as stream:
        assert await receive(stream, 1) == ["here"]
        await hub.publish("news", {"data": "x", "event": "noise"})
        await nothing_more(stream)
        await hub.publish("news", "again")
        assert await receive(stream, 1) == ["again"]


@dataclass
class Price:
    amount: int


async def test_what_it_sees_and_what_it_may_return() -> None:
    seen: list[tuple[str | None, str | None, str | None]] = []

    def each(event: Event) -> Any:
        seen.append((event.event, event.data, event.id))
        return {
            "same": event,
            "dict": {"data": {"of": event.data}, "event": "made"},
            "str": f"{event.data}!",
            "event": ServerSentEvent(Price(5), event=event.event),
            "bytes": b"event: frame\ndata: 1\ndata: 2\n\n",
            "nothing": None,
        }[str(event.data)]

    hub = Hub()
    async with connect(stream_of(hub, "news", each=each)) as stream:
        await anyio.wait_all_tasks_blocked()
        for kind in ("same", "dict", "str", "event", "bytes", "nothing"):
            await hub.publish("news", {"data": kind, "event": "e", "retry": 5, "comment": "c"})
        await hub.publish("news", "same")
        events = [await stream.receive() for _ in range(6)]
    assert [(event.event, event.data) for event in events] == [
        ("e", "same"), ("made", '{"of":"dict"}'), ("message", "str!"), ("e", '{"amount":5}'),
        ("frame", "1\n2"), ("message", "same"),
    ]  # fmt: skip
    assert seen[0] == ("e", "same", None)
    assert seen[-1] == (None, "same", None)
    assert [event.id.rpartition("-")[2] for event in events] == ["1", "2", "3", "4", "5", "7"]


async def test_each_is_called_once_for_each_event_and_subscriber() -> None:
    called: list[str] = []

    def each(event: Event) -> Event:
        called.append(str(event.data))
        return event

    hub = Hub()
    async with connect(stream_of(hub, "news", each=each)) as stream:
        await anyio.wait_all_tasks_blocked()
        for number in range(20):
            await hub.publish("news", str(number))
            await anyio.wait_all_tasks_blocked()
        await receive(stream, 20)
    assert called == [str(number) for number in range(20)]


@pytest.mark.parametrize("wrong", ["raises", "no event", "an id"])
async def test_what_goes_wrong_ends_its_own_stream_alone(wrong: str) -> None:
    def each(event: Event) -> Any:
        if wrong == "raises":
            raise KeyError("mine")
        return {"data": "x", "id": "5"} if wrong == "an id" else 5

    hub, recorder = Hub(), Recorder()
    app = sse_app(lambda: hub.subscribe("news", each=each), on_close=recorder.on_close)
    async with connect(stream_of(hub, "news")) as other:
        with pytest.raises((KeyError, TypeError, ValueError)):
            async with connect(app) as stream:
                await anyio.wait_all_tasks_blocked()
                await hub.publish("news", "x")
                await stream.receive()
        assert await receive(other, 1) == ["x"]
        assert hub.subscribers() == 1
    assert recorder.report.reason is CloseReason.ERROR


async def test_gaps_and_events_without_data_are_not_its_business() -> None:
    hub = Hub(max_events=2)
    ids = [await hub.publish("news", str(number)) for number in range(5)]
    app = stream_of(hub, "news", each=lambda event: None)
    async with connect(app, headers=back(ids[0])) as stream:
        assert (await gap(stream))[1]["missed"] == 2
        await anyio.wait_all_tasks_blocked()
        await hub.publish("news", {"comment": "only a comment"})
        await anyio.wait_all_tasks_blocked()
        await nothing_more(stream)
        assert "only a comment" in stream.comments


async def test_the_newest_of_each_key_goes_through_it() -> None:
    hub = Hub()
    first = await hub.publish("news", "0")
    for number in range(1, 9):
        await hub.publish("news", str(number), collapse_key=str(number % 4))
    app = stream_of(hub, "news", policy="latest", each=even)
    async with connect(app, headers=back(first)) as stream:
        assert await receive(stream, 2) == ["6", "8"]


@pytest.mark.parametrize("each", [5, "data"])
async def test_what_is_no_function(each: Any) -> None:
    with pytest.raises(TypeError, match="each must be callable"):
        Hub().subscribe("news", each=each)


async def test_the_data_may_be_json() -> None:
    """As on the page of the documentation."""
    hub = Hub()

    def public(event: Event) -> Any:
        data = json.loads(event.data or "null")
        data.pop("secret", None)
        return {"data": data}

    async with connect(stream_of(hub, "news", each=public)) as stream:
        await anyio.wait_all_tasks_blocked()
        await hub.publish("news", {"data": {"a": 1, "secret": 2}})
        assert await receive(stream, 1) == ['{"a":1}']
