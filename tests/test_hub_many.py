"""Many events in one call."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_asgi import ServerSentEvent
from sse_asgi.hub import (
    BatchLog,
    EventTooLargeError,
    Hub,
    HubClosedError,
    HubError,
    Log,
    MemoryLog,
    Position,
)
from sse_asgi.testing import connect
from sse_asgi.types import EventLike

from .test_hub import back, receive, stream_of

pytestmark = pytest.mark.anyio


def offsets(ids: list[str]) -> list[int]:
    return [int(event_id.split("-")[1]) for event_id in ids]


class SingleLog:
    """A log of the application's own, which appends one event at a time."""

    def __init__(self) -> None:
        self._log = MemoryLog()
        self.appended: list[tuple[bytes, str | None, str | None]] = []

    async def append(
        self, topic: str, body: bytes, *, key: str | None = None, collapse_key: str | None = None
    ) -> Position:
        self.appended.append((body, key, collapse_key))
        return await self._log.append(topic, body, key=key, collapse_key=collapse_key)

    def __getattr__(self, name: str) -> Any:
        if name == "append_many":
            raise AttributeError(name)
        return getattr(self._log, name)


def single_log() -> Log:
    return cast("Log", SingleLog())


LOGS = pytest.mark.parametrize("new_log", [MemoryLog, single_log])


@LOGS
async def test_all_arrive_in_order(new_log: Callable[[], Log]) -> None:
    hub = Hub(new_log())
    first = await hub.publish("news", "first")
    async with connect(stream_of(hub, "news"), headers=back(first)) as stream:
        events = [str(number) for number in range(700)]
        ids = await hub.publish_many("news", iter(events))
        assert offsets(ids) == list(range(2, 702))
        received = [await stream.receive() for _ in events]
        assert [(event.id, event.data) for event in received] == list(zip(ids, events, strict=True))


@LOGS
async def test_events_of_every_kind(new_log: Callable[[], Log]) -> None:
    hub = Hub(new_log())
    events: list[EventLike] = [
        "a",
        {"data": {"b": 1}},
        ServerSentEvent(data="c", event="x"),
        b"data: d\n\n",
    ]
    ids = await hub.publish_many("t", events)
    headers = back((await hub.position("t")).split("-")[0] + "-0")
    async with connect(stream_of(hub, "t"), headers=headers) as stream:
        assert await receive(stream, 4) == ["a", '{"b":1}', "c", "d"]
    assert offsets(ids) == [1, 2, 3, 4]


@LOGS
async def test_no_events(new_log: Callable[[], Log]) -> None:
    hub = Hub(log := new_log())
    assert await hub.publish_many("t", []) == []
    assert await hub.publish_many("t", (), keys=[]) == []
    assert list(log.topics() or ()) == []


@LOGS
async def test_keys(new_log: Callable[[], Log]) -> None:
    """Each event is stored once, also if a part of the call has taken place."""
    hub = Hub(new_log())
    ids = await hub.publish_many("t", ["b", "x"], keys=["1", None])
    assert offsets(ids) == [1, 2]
    first = await hub.publish_many("t", list("cd"), keys=["3", "4"])
    again = await hub.publish_many("t", list("bcdef"), keys=["1", "3", "4", "5", "5"])
    assert again == [ids[0], *first, again[3], again[3]]
    assert offsets(again) == [1, 3, 4, 5, 5]
    assert await hub.publish("t", "c", key="3") == first[0]


async def test_collapse_keys() -> None:
    hub = Hub()
    before = await hub.publish("t", "before")
    subscription = hub.subscribe("t", policy="latest", last_event_id=before)
    ids = await hub.publish_many(
        "t", ["1", "2", "3", "4"], collapse_keys=(key for key in ("a", "b", None, "a"))
    )
    frame = await anext(subscription)
    assert frame == "".join(f"id: {ids[n]}\ndata: {n + 1}\n\n" for n in (1, 2, 3)).encode()
    subscription.close()


# -- what is refused -------------------------------------------------------------------------------

LARGE = "x" * 2000


@LOGS
@pytest.mark.parametrize(
    ("bad", "options", "error"),
    [
        ({"data": "x", "id": "1"}, {}, ValueError),
        ({"dat": "x"}, {}, TypeError),
        (object(), {}, TypeError),
        ("x\ud800", {}, ValueError),
        (b"data: x", {}, ValueError),
        ("x", {"keys": ["a", "b", "c", ""]}, ValueError),
        ("x", {"keys": ["a", "b", "c", 5]}, TypeError),
        ("x", {"collapse_keys": ["a", "b", "c", "d" * 256]}, ValueError),
    ],
)
async def test_a_bad_event_stores_nothing(
    new_log: Callable[[], Log], bad: Any, options: Any, error: type[Exception]
) -> None:
    """The error says which it is."""
    hub = Hub(log := new_log())
    with pytest.raises(error, match=r"events\[3\]") as caught:
        await hub.publish_many("t", ["0", "1", "2", bad], **options)
    assert "events[3]" in "".join(caught.value.__notes__)
    assert list(log.topics() or ()) == []


async def test_an_event_that_is_too_large_stores_nothing() -> None:
    hub = Hub(log := MemoryLog(max_bytes=1000))
    events = ["x"] * 600 + [LARGE] + ["x"] * 600
    with pytest.raises(EventTooLargeError, match=r"events\[600\]"):
        await hub.publish_many("t", events)
    assert not log.topics()


@pytest.mark.parametrize(
    ("events", "options", "error"),
    [
        ("abc", {}, TypeError),
        (b"data: x\n\n", {}, TypeError),
        ({"data": "x"}, {}, TypeError),
        (ServerSentEvent(data="x"), {}, TypeError),
        (None, {}, TypeError),
        (["x"], {"keys": "k"}, TypeError),
        (["x"], {"keys": 5}, TypeError),
        (["x"], {"keys": []}, ValueError),
        (["x"], {"collapse_keys": ["a", "b"]}, ValueError),
        ([], {"keys": ["a"]}, ValueError),
    ],
)
async def test_arguments_are_checked(events: Any, options: Any, error: type[Exception]) -> None:
    hub = Hub()
    with pytest.raises(error):
        await hub.publish_many("t", events, **options)
    async with hub:
        with pytest.raises(error):
            await anyio.to_thread.run_sync(
                partial(hub.publish_many_from_thread, "t", events, **options)
            )
    with pytest.raises(HubClosedError):
        await hub.publish_many("t", [])


async def test_the_topic_is_checked() -> None:
    with pytest.raises(ValueError, match=r"\*"):
        await Hub().publish_many("a*", [])


# -- from threads ----------------------------------------------------------------------------------


async def test_from_a_thread() -> None:
    """The events are iterated over in that thread: they may come from what blocks."""
    threads: set[int] = set()

    def events() -> Iterator[str]:
        threads.add(threading.get_ident())
        yield from "abc"

    async with Hub() as hub:
        with pytest.raises(RuntimeError):
            hub.publish_many_from_thread("t", ["x"])
        ids = await anyio.to_thread.run_sync(
            partial(hub.publish_many_from_thread, "t", events(), keys=iter("123"))
        )
        assert offsets(ids) == [1, 2, 3]
        assert await hub.publish("t", "b", key="2") == ids[1]
        assert threading.get_ident() not in threads


# -- large calls -----------------------------------------------------------------------------------


@asynccontextmanager
async def following(hub: Hub, topic: str, seen: list[str]) -> AsyncIterator[None]:
    """A stream that takes all as fast as it can; gaps are seen, too."""
    app = stream_of(hub, topic)

    async def follow() -> None:
        async with connect(app) as stream:
            async for event in stream:
                seen.append("gap" if event.event == "gap" else event.data)  # noqa: PERF401

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        yield
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("size", [0, 1500])
@pytest.mark.parametrize("callers", [1, 8])
@pytest.mark.parametrize("limits", [{}, {"max_events": 10}, {"max_bytes": 8000}])
async def test_subscribers_keep_up(limits: Any, callers: int, size: int) -> None:
    """None of them misses an event, however many there are in a call."""
    hub = Hub(**limits)
    count = 1000 // callers
    seen: list[str] = []
    async with following(hub, "t", seen):
        async with anyio.create_task_group() as tasks:
            for caller in range(callers):
                events = [f"{caller} {number} {'x' * size}" for number in range(count)]
                tasks.start_soon(hub.publish_many, "t", events)
        with anyio.fail_after(20):
            while len(seen) < callers * count:
                await anyio.sleep(0.01)
    assert "gap" not in seen
    for caller in range(callers):
        own = [int(data.split()[1]) for data in seen if data.startswith(f"{caller} ")]
        assert own == list(range(count))


async def test_others_run_meanwhile() -> None:
    """Neither the checks nor the appends keep the event loop for long."""
    hub = Hub()
    turns = 0
    done = False

    async def count() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        ids = await hub.publish_many("t", ["x"] * 100_000)
        done = True
    assert offsets(ids) == list(range(1, 100_001))
    assert turns > 1000


async def test_the_list_may_change_meanwhile() -> None:
    hub = Hub()
    events = [str(number) for number in range(50_000)]
    ids: list[str] = []

    async def publish() -> None:
        ids.extend(await hub.publish_many("t", events))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(publish)
        await checkpoint()
        await checkpoint()
        events.clear()
    assert len(ids) == 50_000


async def test_the_hub_is_closed_meanwhile() -> None:
    async with Hub() as hub:
        stored: list[str] = []

        async def publish() -> None:
            with pytest.raises(HubClosedError):
                await hub.publish_many("t", ["x"] * 100_000)
            stored.append("raised")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish)
            while not offsets([await hub.position("t")])[0]:
                await checkpoint()
            hub.close()
        assert stored


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13, 21, 40, 80])
async def test_a_call_that_is_cancelled(steps: int) -> None:
    """A part is stored. Called again with the same keys, it stores the rest."""
    hub = Hub()
    events = [str(number) for number in range(600)]
    keys = [f"key {number}" for number in range(600)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(hub.publish_many, "t", events, keys=keys))
        for _ in range(steps):
            await checkpoint()
        tasks.cancel_scope.cancel()
    page = await hub._log.read("t", None, 0)
    assert page.absent or page.last in (250, 500, 600)  # in steps
    assert offsets(await hub.publish_many("t", events, keys=keys)) == list(range(1, 601))


class FailingLog(MemoryLog):
    """A log that can't be reached for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Any] = []
        self.fails_at = -1

    async def append_many(self, topic: str, records: Any) -> list[Position]:
        self.parts.append(list(records))
        if len(self.parts) == self.fails_at:
            raise HubError("not now")
        return await super().append_many(topic, records)


async def test_a_failure_between_two_parts() -> None:
    log = FailingLog()
    contract: BatchLog = log
    hub = Hub(contract)
    events = [str(number) for number in range(600)]
    log.fails_at = 3
    with pytest.raises(HubError):
        await hub.publish_many("t", events, keys=events)
    assert [len(part) for part in log.parts] == [250, 250, 100]
    ids = await hub.publish_many("t", events, keys=events)
    assert offsets(ids) == list(range(1, 601))


@pytest.mark.parametrize(
    ("limits", "sizes", "expected"),
    [
        ({"max_events": 8}, [1] * 5, [2, 2, 1]),
        ({"max_events": 1}, [1] * 3, [1, 1, 1]),
        ({"max_events": 100_000}, [1] * 501, [250, 250, 1]),
        ({"max_bytes": 400}, [50, 50, 50, 100, 100, 400, 1], [2, 1, 1, 1, 1, 1]),
        ({"max_bytes": 2**30}, [2**17, 2**17, 1, 2**19, 2**17], [2, 1, 1, 1]),
    ],
)
async def test_parts(limits: Any, sizes: list[int], expected: list[int]) -> None:
    """At most a quarter of what the log keeps. A large event is a part of its own."""
    log = FailingLog()
    MemoryLog.__init__(log, **limits)
    around = len("data: \n\n")
    events = ["x" * max(0, size - around) for size in sizes]
    await Hub(log).publish_many("t", events)
    assert [len(part) for part in log.parts] == expected


# -- any interleaving ------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["one", "many"]),
        st.integers(0, 6),  # how many
        st.booleans(),  # with keys, and again after a cancellation
        st.one_of(st.none(), st.integers(0, 30)),  # cancelled after so many checkpoints
    ),
    max_size=5,
)


async def interleave(hub: Hub, topic: str, publishers: list[Any]) -> None:
    """Publish in any order, with cancellations. The topic then has what it should."""
    returned: dict[str, str] = {}  # what was published, by id
    certain: list[list[str]] = [[] for _ in publishers]
    possible: set[str] = set()

    async def publish(me: int, steps: Any) -> None:
        for number, (kind, count, keyed, cancel) in enumerate(steps):
            data = [f"{me} {number} {n}" for n in range(count if kind == "many" else 1)]
            keys = data if keyed else None

            async def call(data: list[str] = data, keys: Any = keys, kind: str = kind) -> None:
                if kind == "many":
                    ids = await hub.publish_many(topic, data, keys=keys)
                else:
                    ids = [await hub.publish(topic, data[0], key=keys and keys[0])]
                for event_id, one in zip(ids, data, strict=True):
                    assert returned.setdefault(event_id, one) == one

            possible.update(data)
            if cancel is not None:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(call)
                    for _ in range(cancel):
                        await checkpoint()
                    tasks.cancel_scope.cancel()
            if cancel is None or keyed:
                await call()
                certain[me] += data

    async with anyio.create_task_group() as tasks:
        for me, steps in enumerate(publishers):
            tasks.start_soon(publish, me, steps)
    # What was cancelled may be under way, and is stored whole or not at all.
    await hub.publish(topic, "last")
    stored = await everything(hub, topic)
    data = [one for _, one in stored]
    assert [number for number, _ in stored] == list(range(1, len(stored) + 1))
    assert len(set(data)) == len(data), "twice"
    assert set(data) <= possible | {"last"}
    for own in certain:
        found = [one for one in data if one in own]
        assert found == own, "lost, or out of order"
    at = dict(stored)
    for event_id, one in returned.items():
        assert at[int(event_id.split("-")[1])] == one


async def everything(hub: Hub, topic: str) -> list[tuple[int, str]]:
    """All events of a topic, with their offsets, until the one that says "last"."""
    epoch = (await hub.position(topic)).split("-")[0]
    found: list[tuple[int, str]] = []
    async with connect(stream_of(hub, topic), headers=back(f"{epoch}-0")) as stream:
        with anyio.fail_after(20):
            while not found or found[-1][1] != "last":
                event = await stream.receive()
                assert event.event != "gap"
                assert event.id is not None
                found.append((int(event.id.split("-")[1]), event.data))
    return found


def test_any_interleaving(anyio_backend: str) -> None:
    @given(publishers=st.lists(STEPS, min_size=1, max_size=4))
    @settings(max_examples=60, deadline=None)
    def check(publishers: list[Any]) -> None:
        anyio.run(lambda: interleave(Hub(), "t", publishers), backend=anyio_backend)

    check()
