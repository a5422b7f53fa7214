"""The hub: what subscribers get, live and after they come back, and what becomes of slow ones."""

from __future__ import annotations

import gc
import json
import re
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus
from hypothesis import given
from hypothesis import strategies as st

from sse_asgi import CloseReason, ServerSentEvent, SSERequest, sse_app
from sse_asgi.decoder import DecodedEvent
from sse_asgi.encoder import encode
from sse_asgi.hub import EventTooLargeError, Hub, HubClosedError, HubError, MemoryLog, Page
from sse_asgi.hub.asking import PAUSE
from sse_asgi.hub.names import matcher
from sse_asgi.testing import Connection, connect
from sse_asgi.types import ASGIApp

from .hub_model import subscribe
from .streams import Recorder, on_mock_clock

pytestmark = pytest.mark.anyio


def stream_of(hub: Hub, *topics: str, **options: Any) -> ASGIApp:
    """An application that streams topics to each client, from where that was."""

    def factory(request: SSERequest) -> Any:
        return subscribe(hub, topics, last_event_id=request.last_event_id, **options)

    return sse_app(factory)


def back(last_event_id: str) -> dict[str, str]:
    """The header of a client that comes back."""
    return {"last-event-id": last_event_id}


async def receive(stream: Connection, count: int) -> list[str]:
    """The data of the next events."""
    with anyio.fail_after(30):
        return [(await stream.receive()).data for _ in range(count)]


async def nothing_more(stream: Connection) -> None:
    await anyio.wait_all_tasks_blocked()
    with anyio.move_on_after(0.01) as waited:
        event = await stream.receive()
        raise AssertionError(f"there is {event}")
    assert waited.cancelled_caught


async def gap(stream: Connection) -> tuple[DecodedEvent, Any]:
    with anyio.fail_after(10):
        event = await stream.receive()
    assert event.event == "gap"
    return event, json.loads(event.data)


# -- live, and replay ------------------------------------------------------------------------------


async def test_subscribers_get_what_is_published() -> None:
    hub = Hub()
    app = stream_of(hub, "news")
    async with connect(app) as first, connect(app) as second:
        await anyio.wait_all_tasks_blocked()
        ids = [
            await hub.publish("news", event)
            for event in ("a", {"event": "b", "data": {"n": 1}}, ServerSentEvent("c\nd"))
        ]
        for stream in (first, second):
            events = [await stream.receive() for _ in ids]
            assert [event.id for event in events] == ids
            assert [(event.event, event.data) for event in events] == [
                ("message", "a"),
                ("b", '{"n":1}'),
                ("message", "c\nd"),
            ]


async def test_ids_count_the_events_of_a_topic() -> None:
    hub = Hub()
    ids = [await hub.publish(topic, "x") for topic in ("a", "a", "b", "a")]
    (epoch, one), (same, two), (other, first), (again, three) = [i.split("-") for i in ids]
    assert epoch == same == again != other
    assert (one, two, three, first) == ("1", "2", "3", "1")


async def test_what_was_published_before_is_not_sent() -> None:
    hub = Hub()
    await hub.publish("news", "old")
    async with connect(stream_of(hub, "news")) as stream:
        await nothing_more(stream)
        await hub.publish("news", "new")
        assert await receive(stream, 1) == ["new"]


@pytest.mark.parametrize(("history", "expected"), [(0, []), (2, ["3", "4"]), (99, list("01234"))])
async def test_history(history: int, expected: list[str]) -> None:
    hub = Hub()
    for number in range(5):
        await hub.publish("news", str(number))
    async with connect(stream_of(hub, "news", history=history)) as stream:
        assert await receive(stream, len(expected)) == expected
        await nothing_more(stream)


async def test_history_without_what_the_log_has_lost() -> None:
    hub = Hub(max_events=2)
    for number in range(5):
        await hub.publish("news", str(number))
    async with connect(stream_of(hub, "news", history=4)) as stream:
        assert await receive(stream, 2) == ["3", "4"]


async def test_the_subscription_begins_with_the_call() -> None:
    """Not with the first step: what is published in between is not lost."""
    hub = Hub()
    await hub.publish("news", "before")
    live, with_history = hub.subscribe("news"), hub.subscribe("news", history=1)
    await hub.publish("news", "between")
    await hub.publish("news", "too")
    body = await anext(live)
    assert b"between" in body
    assert b"too" in body
    assert b"before" not in body
    assert (await anext(with_history)).count(b"data: ") == 3
    for subscription in (live, with_history):
        await subscription.aclose()


@pytest.mark.parametrize("missed", [0, 1, 3])
async def test_a_client_that_comes_back_misses_nothing(missed: int) -> None:
    """Regressions 15 and 22: all that came in between, once, and then what comes."""
    hub = Hub()
    app = stream_of(hub, "news")
    async with connect(app) as stream:
        await anyio.wait_all_tasks_blocked()
        last = await hub.publish("news", "had")
        assert await receive(stream, 1) == ["had"]
    for number in range(missed):
        await hub.publish("news", str(number))
    async with connect(app, headers=back(last)) as stream:
        assert await receive(stream, missed) == [str(number) for number in range(missed)]
        await hub.publish("news", "live")
        assert await receive(stream, 1) == ["live"]
        await nothing_more(stream)


async def test_a_page_that_was_made_before_its_stream() -> None:
    hub = Hub()
    await hub.publish("news", "on the page")
    position = await hub.position("news")
    await hub.publish("news", "in between")
    async with connect(stream_of(hub, "news"), headers=back(position)) as stream:
        assert await receive(stream, 1) == ["in between"]
        await nothing_more(stream)


async def test_publishing_while_a_client_catches_up() -> None:
    """Regression 15: more history than any buffer, and more of it all the time."""
    hub = Hub(max_events=20000, max_bytes=2**24)
    first = await hub.publish("news", "0")
    for number in range(1, 5000):
        await hub.publish("news", str(number))

    async def go_on() -> None:
        for number in range(5000, 6000):
            await hub.publish("news", str(number))

    async with connect(stream_of(hub, "news"), headers=back(first)) as stream:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(go_on)
            assert await receive(stream, 5999) == [str(number) for number in range(1, 6000)]
        await nothing_more(stream)


# -- gaps ------------------------------------------------------------------------------------------


async def test_an_id_that_has_expired() -> None:
    """Regression 23: the client is told how much it has missed, and gets the rest."""
    hub = Hub(max_events=3)
    ids = [await hub.publish("news", str(number)) for number in range(10)]
    async with connect(stream_of(hub, "news"), headers=back(ids[1])) as stream:
        event, data = await gap(stream)
        assert event.id == ids[6]
        assert data == {"after": ids[1], "position": ids[6], "missed": 5}
        assert await receive(stream, 3) == ["7", "8", "9"]
        await nothing_more(stream)
    async with connect(stream_of(hub, "news"), headers=back(event.id)) as stream:
        assert await receive(stream, 3) == ["7", "8", "9"]


async def test_ids_that_mean_nothing() -> None:
    """Regression 23: never an error, and never silence."""
    hub = Hub()
    other = await hub.publish("other", "x")
    ids = [await hub.publish("news", str(number)) for number in range(2)]
    epoch = ids[0].split("-")[0]
    for claimed in (
        "5",
        "abc",
        "ü",
        "-",
        f"{epoch}-",
        f"{epoch}--1",
        f"{epoch}-01",
        f"{epoch}-1-1",
        f"{epoch}-1.{epoch}-1",
        f"{epoch}-3",
        f"{epoch}-{'9' * 15}",
        f"{epoch}-{'9' * 3000}",
        f"A{epoch[1:]}-1",
        other,
        "x" * 4000,
        "x" * 5000,
        f"{ids[0]}{'.0-0' * 15_000}",
    ):
        headers = [(b"last-event-id", claimed.encode())]
        async with connect(stream_of(hub, "news"), headers=headers) as stream:
            event, data = await gap(stream)
            assert data["missed"] is None
            assert claimed.startswith(data["after"])
            assert len(data["after"]) <= 64
            assert data["position"] == event.id == f"{epoch}-0"
            assert await receive(stream, 2) == ["0", "1"]
            await nothing_more(stream)


async def test_the_name_of_the_gap_event() -> None:
    hub = Hub(gap_event="missed")
    async with connect(stream_of(hub, "news"), headers=back("?")) as stream:
        assert (await stream.receive()).event == "missed"


@on_mock_clock
async def test_events_grow_old() -> None:
    hub = Hub(max_age=10)
    ids = []
    for number in range(4):
        ids.append(await hub.publish("news", str(number)))
        await trio.sleep(4)
    # 16 s after the first, 4 s after the last.
    async with connect(stream_of(hub, "news", history=99)) as stream:
        assert await receive(stream, 2) == ["2", "3"]
    await trio.sleep(60)
    async with connect(stream_of(hub, "news"), headers=back(ids[-1])) as stream:
        await nothing_more(stream)
    async with connect(stream_of(hub, "news"), headers=back(ids[-2])) as stream:
        assert (await gap(stream))[1] == {"after": ids[-2], "position": ids[-1], "missed": 1}


async def test_bytes_are_bounded() -> None:
    hub = Hub(max_bytes=1000)
    for _ in range(50):
        await hub.publish("news", "x" * 100)
    async with connect(stream_of(hub, "news", history=99)) as stream:
        assert await receive(stream, 9) == ["x" * 100] * 9
        await nothing_more(stream)
    with pytest.raises(EventTooLargeError, match="max_bytes is 1000"):
        await hub.publish("news", "x" * 1000)


# -- slow subscribers ------------------------------------------------------------------------------


async def test_one_that_stalls_changes_nothing_for_the_others() -> None:
    """Regression 24: nobody waits for it, and its memory is that of the log."""
    hub = Hub(max_events=10)
    app = stream_of(hub, "news")
    async with connect(app) as stalled, connect(app) as stream:
        await anyio.wait_all_tasks_blocked()
        stalled.stall()
        for number in range(100):
            await hub.publish("news", str(number))
            assert await receive(stream, 1) == [str(number)]
        stalled.resume()
        assert await receive(stalled, 1) == ["0"]  # on its way when it stalled
        _, data = await gap(stalled)
        assert data["missed"] == 89
        assert data["after"].endswith("-1")
        assert await receive(stalled, 10) == [str(number) for number in range(90, 100)]


async def test_one_that_is_to_come_back_when_it_is_too_slow() -> None:
    hub = Hub(max_events=10)
    app = stream_of(hub, "news", policy="disconnect")
    async with connect(app) as stream:
        await anyio.wait_all_tasks_blocked()
        stream.stall()
        for number in range(100):
            await hub.publish("news", str(number))
            await anyio.wait_all_tasks_blocked()
        stream.resume()
        assert [event.data async for event in stream] == ["0"]
        assert stream.complete
        last = stream.last_event_id
    async with connect(app, headers=back(last)) as stream:
        assert (await gap(stream))[1]["missed"] == 89


async def test_one_that_wants_the_latest_only() -> None:
    hub = Hub(max_events=20000)
    app = stream_of(hub, "prices", policy="latest")
    async with connect(app) as stream:
        await anyio.wait_all_tasks_blocked()
        stream.stall()
        await hub.publish("prices", "on its way")
        await anyio.wait_all_tasks_blocked()
        for number in range(5000):
            for name in ("a", "b"):
                await hub.publish("prices", f"{name}{number}", collapse_key=name)
            if number == 2500:
                await hub.publish("prices", "news")
        stream.resume()
        assert await receive(stream, 4) == ["on its way", "news", "a4999", "b4999"]
        await nothing_more(stream)


async def test_ten_thousand_events_behind() -> None:
    """A handful of sends, not ten thousand."""
    hub = Hub(max_events=20000, max_bytes=2**24)
    first = await hub.publish("news", "0")
    for number in range(1, 10001):
        await hub.publish("news", str(number))
    subscription = hub.subscribe("news", last_event_id=first)
    frames: list[bytes] = []
    while b"data: 10000\n" not in b"".join(frames[-1:]):
        frames.append(await anext(subscription))
    assert b"".join(frames).count(b"data: ") == 10000
    assert len(frames) <= 10
    await subscription.aclose()


# -- several topics --------------------------------------------------------------------------------


async def test_several_topics() -> None:
    hub = Hub()
    app = stream_of(hub, "a", "b")
    async with connect(app) as stream:
        await anyio.wait_all_tasks_blocked()
        for topic, data in (("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")):
            await hub.publish(topic, data)
            await anyio.wait_all_tasks_blocked()
        assert await receive(stream, 3) == ["1", "2", "3"]
        last = stream.last_event_id
    await hub.publish("b", "5")
    await hub.publish("a", "6")
    parts = last.split(".")
    for claimed in (last, ".".join(reversed(parts))):  # in any order
        async with connect(app, headers=back(claimed)) as stream:
            assert sorted(await receive(stream, 2)) == ["5", "6"]
            await nothing_more(stream)


async def test_a_gap_in_one_of_several_topics() -> None:
    hub = Hub(max_events=2)
    app = stream_of(hub, "a", "b")
    given = await hub.position("a", "b")
    for number in range(5):
        await hub.publish("a", f"a{number}")
    await hub.publish("b", "b0")
    async with connect(app, headers=back(given)) as stream:
        _, data = await gap(stream)
        assert (data["topic"], data["missed"]) == ("a", 3)
        assert sorted(await receive(stream, 3)) == ["a3", "a4", "b0"]
        await nothing_more(stream)


async def test_topics_take_turns() -> None:
    """One in which there is always something does not keep the others from a slow client."""
    hub = Hub()
    given = await hub.position("busy", "quiet")
    await hub.publish("quiet", "here")
    subscription = hub.subscribe("busy", "quiet", last_event_id=given)
    frames: list[bytes] = []
    for _ in range(10):
        await hub.publish("busy", "x" * 70000)
        frames.append(await anext(subscription))
    assert b"data: here" in b"".join(frames)
    await subscription.aclose()


async def test_patterns() -> None:
    hub = Hub()
    await hub.publish("orders/1", "old")
    app = stream_of(hub, "orders/*")
    async with connect(app) as stream:
        await anyio.wait_all_tasks_blocked()
        for topic in ("orders/1", "orders/2", "others/3", "orders/2", "orders/a/b"):
            await hub.publish(topic, topic)
            await anyio.wait_all_tasks_blocked()
        assert await receive(stream, 4) == ["orders/1", "orders/2", "orders/2", "orders/a/b"]
        last = stream.last_event_id
    await hub.publish("orders/2", "away")
    await hub.publish("orders/new", "new")
    async with connect(app, headers=back(last)) as stream:
        assert sorted(await receive(stream, 2)) == ["away", "new"]
        await nothing_more(stream)
    async with connect(app, headers=back("abcdef-3")) as stream:  # before a restart
        topics = {(await gap(stream))[1]["topic"] for _ in range(4)}
        assert topics == {"orders/1", "orders/2", "orders/a/b", "orders/new"}


async def test_a_pattern_whose_topics_have_gone() -> None:
    """The server was started again, and nothing has been published yet."""
    hub = Hub()
    app = stream_of(hub, "orders/*")
    async with connect(app, headers=back("abcdef-3")) as stream:
        event, data = await gap(stream)
        assert data == {"after": "abcdef-3", "position": None, "missed": None}
        assert event.id == ""  # it keeps the one that it has
        await hub.publish("orders/1", "x")
        assert await receive(stream, 1) == ["x"]
        await nothing_more(stream)
        last = stream.last_event_id
    async with connect(app, headers=back(last)) as stream:
        await nothing_more(stream)
    async with connect(app, headers=back(f"{last}.abcdef-3")) as stream:
        assert (await gap(stream))[1]["position"] == last
        await nothing_more(stream)


async def test_an_id_with_too_many_topics_says_so() -> None:
    hub = Hub()
    for number in range(300):
        await hub.publish(f"t/{number}", "x")
    app = stream_of(hub, "t/*")
    async with connect(app) as stream:
        await anyio.wait_all_tasks_blocked()
        await hub.publish("t/0", "y")
        assert await receive(stream, 1) == ["y"]
        last = stream.last_event_id
    assert len(last) <= 2048
    await hub.publish("t/0", "z")
    async with connect(app, headers=back(last)) as stream:
        events = [await stream.receive() for _ in range(300)]
        known = last.count(".") + 1
        assert [event.event for event in events].count("gap") == 300 - known
    with pytest.raises(ValueError, match="room for"):
        hub.subscribe(*(f"t/{number}" for number in range(300)))


# -- publishing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        {"id": 1, "data": "x"},
        ServerSentEvent(id=""),
        b"id: 1\ndata: x\n\n",
        b"data: x\r\nid:\r\n\r\n",
    ],
)
async def test_the_hub_gives_the_ids(event: Any) -> None:
    hub = Hub()
    with pytest.raises((TypeError, ValueError), match="the hub gives the ids"):
        await hub.publish("news", event)
    with pytest.raises((TypeError, ValueError), match="the hub gives the ids"):
        hub.publish_from_thread("news", event)
    assert (await hub.publish("news", "fine")).endswith("-1")


@pytest.mark.parametrize(
    ("frame", "event"),
    [
        (b"data: a\n\n", {"data": "a"}),
        (b"data:a\r\ndata: b\r\n\r\n", {"data": "a\nb"}),
        (b"event: x\rdata: a\r\r", {"event": "x", "data": "a"}),
        (b": c\n:d\nretry: 9\nother: 1\ndata\n\n", {"comment": "c\nd", "retry": 9, "data": ""}),
        (b"event: message\ndata: a\n\n", {"data": "a"}),
        (b"\n\ndata: a\n\n\n", {"data": "a"}),
    ],
)
async def test_a_frame_of_another_encoder_is_decoded_first(frame: bytes, event: Any) -> None:
    hub = Hub()
    subscription = hub.subscribe("news")
    for published in (frame, event):
        await hub.publish("news", published)
    frames = (await anext(subscription)).split(b"id: ")[1:]
    bodies = [each.partition(b"\n")[2] for each in frames]
    assert bodies == [encode(event)] * 2


async def test_the_limit_for_a_frame_is_that_of_the_log() -> None:
    """And not that of a decoder."""
    frame = b"data: " + b"x" * 2**20 + b"\n\n"
    hub = Hub(max_bytes=2**21)
    subscription = hub.subscribe("news")
    await hub.publish("news", frame)
    assert (await anext(subscription)).endswith(frame)
    with pytest.raises(EventTooLargeError, match="max_bytes"):
        await Hub().publish("news", frame)


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (b"data: a", "whole frames"),
        (b"data: a\n", "whole frames"),
        (b"data: a\n\ndata: b\n\n", "these bytes have 2"),
        (b":\n\n", "these bytes have 0"),
        (b"event: x\n\n", "these bytes have 0"),
        (b"", "these bytes have 0"),
        (b"data: \xff\n\n", "can't decode byte 0xff"),
        ("data: a\n\n", r"a frame already.*frame\.encode\(\)"),
    ],
)
async def test_what_is_not_one_event_is_not_published(frame: Any, error: str) -> None:
    """Regression 40, at a hub."""
    hub = Hub()
    with pytest.raises(ValueError, match=error):
        await hub.publish("news", frame)
    with pytest.raises(ValueError, match=error):
        hub.publish_from_thread("news", frame)
    assert (await hub.publish("news", "fine")).endswith("-1")


@pytest.mark.parametrize("topic", ["", "a*", "a\nb", "\0", "x" * 256, None, 1])
async def test_what_is_no_topic(topic: Any) -> None:
    hub = Hub()
    with pytest.raises((TypeError, ValueError), match="a topic"):
        await hub.publish(topic, "x")
    with pytest.raises((TypeError, ValueError), match="a topic"):
        hub.subscribe(topic)


async def test_a_client_can_not_make_a_pattern_of_a_topic() -> None:
    """Regression 39: it would read the topics of everybody."""
    with pytest.raises(ValueError, match=r"must not contain '\*'.*patterns="):
        Hub().subscribe("rooms/*")


@pytest.mark.parametrize("patterns", ["a*", [""], ["a\n*"], ["*" * 256], [None], [1], [["a*"]]])
async def test_what_is_no_pattern(patterns: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="pattern"):
        Hub().subscribe("news", patterns=patterns)


async def test_nothing_to_subscribe_to() -> None:
    with pytest.raises(TypeError, match="at least one topic"):
        Hub().subscribe(patterns=())


@given(
    pattern=st.text("ab*", min_size=1, max_size=12),
    topic=st.text("ab", min_size=1, max_size=12),
)
def test_a_pattern_is_what_it_was(pattern: str, topic: str) -> None:
    """The same as with a regular expression, which takes its time."""
    wanted = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), topic)
    assert matcher(pattern)(topic) is bool(wanted)


def test_a_match_takes_no_longer_than_the_topic_is_long() -> None:
    """Regression 39: ten stars against 45 characters took 40 seconds."""
    for stars in (10, 100):
        for _ in range(1000):
            assert not matcher("*a" * stars + "b")("a" * 255)


async def test_a_pattern_is_matched_once_for_each_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    matched: list[str] = []

    def counting(pattern: str) -> Callable[[str], bool]:
        def matches(topic: str) -> bool:
            matched.append(topic)
            return matcher(pattern)(topic)

        return matches

    monkeypatch.setattr("sse_asgi.hub.registry.matcher", counting)
    hub = Hub()
    async with connect(stream_of(hub, "t/*")) as stream:
        await anyio.wait_all_tasks_blocked()
        for _ in range(3):
            for number in range(10):
                await hub.publish(f"t/{number}", "x")
        await receive(stream, 30)
    assert sorted(matched) == [f"t/{number}" for number in range(10)]


async def test_an_event_that_is_published_again() -> None:
    hub = Hub(max_events=3)
    ids = [await hub.publish("news", "x", key=key) for key in ("a", "b", "a")]
    assert ids[0] == ids[2] != ids[1]
    assert await hub.publish("other", "x", key="a") not in ids
    for _ in range(3):
        await hub.publish("news", "y")
    assert await hub.publish("news", "x", key="a") not in ids  # the first is no longer known


@pytest.mark.parametrize("name", ["key", "collapse_key"])
@pytest.mark.parametrize("value", ["", "x" * 256, 1])
async def test_what_is_no_key(name: str, value: Any) -> None:
    hub = Hub()
    with pytest.raises((TypeError, ValueError), match=name):
        await hub.publish("news", "x", **{name: value})


async def test_publishing_from_other_threads() -> None:
    hub = Hub()
    with pytest.raises(HubClosedError, match="not in use"):
        hub.publish_from_thread("news", "x")
    async with connect(stream_of(hub, "news")) as stream:
        await anyio.wait_all_tasks_blocked()

        def publish() -> None:
            ids.extend(hub.publish_from_thread("news", str(number)) for number in range(5))

        ids: list[str] = []
        thread = threading.Thread(target=publish)  # not one of anyio's
        thread.start()
        assert await receive(stream, 5) == list("01234")
        await anyio.to_thread.run_sync(thread.join)
        assert ids[-1] == stream.last_event_id
        with pytest.raises(RuntimeError, match="own thread"):
            hub.publish_from_thread("news", "x")


# -- the end ---------------------------------------------------------------------------------------


async def test_closing_the_hub_ends_the_streams() -> None:
    recorder = Recorder()
    hub = Hub()
    app = sse_app(lambda: hub.subscribe("news"), on_close=recorder.on_close)
    async with hub, connect(app) as stream:
        await hub.publish("news", "x")
        assert await receive(stream, 1) == ["x"]
        hub.close()
        assert [event async for event in stream] == []
        assert stream.complete
        for refused in (hub.publish("news", "x"), hub.position("news")):
            with pytest.raises(HubClosedError):
                await refused
        with pytest.raises(HubClosedError):
            hub.subscribe("news")
    assert recorder.report.reason is CloseReason.FINISHED
    async with hub:  # and again, with what there was
        async with connect(stream_of(hub, "news", history=1)) as stream:
            assert await receive(stream, 1) == ["x"]


class FailsToRun(MemoryLog):
    """A log that raises an error when it is run, before it has started or when it is told."""

    error: Exception | None = None
    fail: anyio.Event | None = None

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        if self.error is not None:
            if self.fail is not None:
                task_status.started()
                await self.fail.wait()
            await anyio.lowlevel.checkpoint()
            raise self.error
        await super().run(task_status=task_status)


@pytest.mark.parametrize("error", [LookupError("no log"), HubError("no log")])
async def test_a_log_that_does_not_start(error: Exception) -> None:
    """The error leaves as itself, and the hub can be opened when the log can run."""
    log = FailsToRun()
    hub = Hub(log)
    for _ in range(2):
        log.error = error
        with pytest.raises(type(error)) as caught:
            async with hub:
                raise AssertionError("the hub is open")
        assert caught.value is error
        log.error = None
        async with hub, connect(stream_of(hub, "news")) as stream:
            await anyio.wait_all_tasks_blocked()
            await hub.publish("news", "x")
            assert await receive(stream, 1) == ["x"]
    with pytest.raises(HubClosedError):
        await hub.publish("news", "x")


async def test_a_hub_that_could_not_be_opened_belongs_to_no_event_loop() -> None:
    log = FailsToRun()
    hub = Hub(log)
    log.error = LookupError("no log")
    with pytest.raises(LookupError):
        await hub.__aenter__()
    log.error = None

    async def elsewhere() -> None:
        async with hub:
            await hub.publish("news", "x")

    await anyio.to_thread.run_sync(anyio.run, elsewhere)


async def test_a_log_that_fails_while_the_hub_is_open(caplog: pytest.LogCaptureFixture) -> None:
    """The streams end, the error comes out, and the hub can be opened again."""
    log = FailsToRun()
    hub = Hub(log)
    log.error, log.fail = LookupError("the log is gone"), anyio.Event()
    with anyio.fail_after(5), pytest.raises(LookupError) as caught:
        async with hub:
            async with connect(stream_of(hub, "news")) as stream:
                log.fail.set()
                assert [event async for event in stream] == []
                assert stream.complete
            with pytest.raises(HubClosedError):
                await hub.publish("news", "x")
    assert caught.value is log.error
    assert [record.exc_info and record.exc_info[1] for record in caplog.records] == [log.error]
    with pytest.raises(HubClosedError):
        await hub.publish("news", "x")
    log.error = None
    async with hub:
        await hub.publish("news", "x")


async def in_a_task(function: Callable[[], Awaitable[object]]) -> None:
    """Call a coroutine function in a task of its own."""

    async def call() -> None:
        await function()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)


async def test_a_hub_is_entered_in_one_task_and_left_in_another() -> None:
    """See pytest-asyncio#1191: that is how a fixture of it is run."""
    running = 0

    class Log(MemoryLog):
        async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
            nonlocal running
            running += 1
            task_status.started()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.01)
                running -= 1

    hub = Hub(Log())
    await in_a_task(hub.__aenter__)
    with anyio.move_on_after(0.01) as scope:  # a scope of this task is not one of the hub
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert running == 1
    async with connect(stream_of(hub, "news")) as stream:
        await hub.publish("news", "x")
        assert (await stream.receive()).data == "x"
        await in_a_task(partial(hub.__aexit__, None, None, None))
        assert running == 0
        assert [event async for event in stream] == []
    with pytest.raises(HubClosedError):
        await hub.publish("news", "x")


async def test_the_work_of_a_log_has_ended_when_the_hub_was_left_by_a_cancellation() -> None:
    ended = False

    class Log(MemoryLog):
        async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
            nonlocal ended
            task_status.started()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.01)
                ended = True

    with anyio.CancelScope() as scope:
        async with Hub(Log()):
            scope.cancel()
            await anyio.sleep_forever()
    assert ended


async def test_a_log_that_does_not_say_that_it_has_started() -> None:
    class Log(MemoryLog):
        async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
            pass

    with anyio.fail_after(5), pytest.raises(RuntimeError, match="has returned without"):
        await Hub(Log()).__aenter__()


class OutOfReach(MemoryLog):
    """A log whose reads fail so many times, and the times at which they came."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures
        self.asked: list[float] = []

    async def read(self, topic: str, after: int | None, max_bytes: int) -> Page:
        self.asked.append(anyio.current_time())
        if len(self.asked) <= self.failures:
            raise HubError("out of reach")
        return await super().read(topic, after, max_bytes)


@on_mock_clock
async def test_a_log_out_of_reach_is_asked_again_after_a_pause() -> None:
    """The stream stays open meanwhile, and loses nothing."""
    log = OutOfReach(failures=20)
    hub = Hub(log)
    ids = [await hub.publish("news", data) for data in ("a", "b")]
    async with connect(stream_of(hub, "news"), headers=back(ids[0])) as stream:
        assert (await stream.receive()).data == "b"
        await hub.publish("news", "c")
        assert (await stream.receive()).data == "c"
    assert len(log.asked) >= 21
    shortest, longest = PAUSE
    pauses = [later - earlier for earlier, later in pairwise(log.asked[:21])]
    assert all(shortest <= pause <= longest for pause in pauses)
    assert len(set(pauses)) > 10  # many subscribers do not ask in step
    assert max(log.asked[21:], default=0) <= log.asked[20] + longest  # and then no more


async def test_a_log_out_of_reach_is_not_asked_without_end() -> None:
    log = OutOfReach(failures=10**9)
    hub = Hub(log)
    begin = time.monotonic()
    async with connect(stream_of(hub, "news"), headers=back("?")) as stream:
        await anyio.sleep(0.05)
        assert not stream.returned
        await stream.disconnect()  # at once, not after the pause
    assert 1 <= len(log.asked) <= 1 + (time.monotonic() - begin) / PAUSE[0]


async def test_lifespan() -> None:
    hub = Hub()
    app = sse_app(lambda: hub.subscribe("news"), lifespan=hub.lifespan)
    seen: list[str] = []
    messages = iter(["startup", "shutdown"])

    async def receive_lifespan() -> Any:
        return {"type": f"lifespan.{next(messages)}"}

    async def send(message: Any) -> None:
        seen.append(message["type"])
        if message["type"] == "lifespan.startup.complete":
            await hub.publish("news", "x")

    await app({"type": "lifespan"}, receive_lifespan, send)
    assert seen == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    with pytest.raises(HubClosedError):
        await hub.publish("news", "x")


async def test_ending_the_streams_of_one_user() -> None:
    hub = Hub()
    users = iter(["ann", "bob", "ann"])
    app = sse_app(lambda: hub.subscribe("news", info=next(users)))
    async with connect(app) as ann, connect(app) as bob, connect(app) as ann_too:
        await anyio.wait_all_tasks_blocked()
        last = {"event": "bye", "data": "signed out"}
        assert hub.kick(lambda subscription: subscription.info == "ann", last=last) == 2
        for stream in (ann, ann_too):
            assert [event.data async for event in stream] == ["signed out"]
            assert stream.complete
        assert hub.subscribers("news") == 1
        await hub.publish("news", "x")
        assert await receive(bob, 1) == ["x"]


async def test_ending_a_subscription_that_has_not_begun() -> None:
    hub = Hub()
    subscription = hub.subscribe("news", info="ann")
    assert hub.kick(lambda subscription: subscription.info == "ann", last="bye") == 1
    assert await anext(subscription) == b"data: bye\n\n"
    with pytest.raises(StopAsyncIteration):
        await anext(subscription)
    dropped = weakref.ref(hub.subscribe("news"))
    gc.collect()
    assert dropped() is None  # nobody has to close it


@on_mock_clock
async def test_one_that_is_ended_in_its_first_step() -> None:
    """It leaves nothing behind: the log follows no topic for it."""
    hub = Hub()
    subscription = hub.subscribe("news", last_event_id="?")
    got: list[bytes] = []

    async def read() -> None:
        got.extend([frame async for frame in subscription])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        while not hub.subscribers():
            await anyio.lowlevel.checkpoint()
        subscription.close("bye")
    assert got[-1] == b"data: bye\n\n"
    before = await hub.position("news")
    await trio.sleep(1000)
    await hub.position("other")
    assert await hub.position("news") != before  # it was forgotten


async def test_counting_subscribers() -> None:
    seen: list[tuple[str, int]] = []
    hub = Hub(on_subscribers=lambda topic, count: seen.append((topic, count)))
    assert hub.subscribers() == hub.subscribers("a") == 0
    hub.subscribe("a")  # never begun: does not count
    async with connect(stream_of(hub, "a", "b")) as first:
        await anyio.wait_all_tasks_blocked()
        async with connect(stream_of(hub, "a")):
            await anyio.wait_all_tasks_blocked()
            assert (hub.subscribers(), hub.subscribers("a"), hub.subscribers("b")) == (2, 2, 1)
        await first.disconnect()
    assert hub.subscribers() == hub.subscribers("a") == 0
    assert seen == [("a", 1), ("b", 1), ("a", 2), ("a", 1), ("a", 0), ("b", 0)]


async def test_a_hub_belongs_to_one_event_loop() -> None:
    hub = Hub()

    async def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await hub.publish("news", "x")

    async with connect(stream_of(hub, "news")):
        await anyio.wait_all_tasks_blocked()
        await anyio.to_thread.run_sync(anyio.run, elsewhere)


@on_mock_clock
async def test_topics_are_forgotten() -> None:
    """Those without events and subscribers, after some time."""
    hub = Hub(max_age=10)
    async with connect(stream_of(hub, "watched")) as stream:
        first = await hub.publish("watched", "x")
        old = await hub.publish("old", "x")
        assert await receive(stream, 1) == ["x"]
        for number in range(1000):
            await trio.sleep(10)
            await hub.publish(f"t{number}", "x")
        assert len(list(hub._log.topics() or ())) < 50
        # Where somebody listens, it goes on as it was.
        assert (await hub.publish("watched", "y")).split("-")[0] == first.split("-")[0]
        assert await receive(stream, 1) == ["y"]
    assert (await hub.position("old")).split("-")[0] != old.split("-")[0]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_events": 0}, ValueError),
        ({"max_events": 1.5}, TypeError),
        ({"max_bytes": 0}, ValueError),
        ({"max_age": 0}, ValueError),
        ({"max_age": "1"}, TypeError),
        ({"gap_event": ""}, TypeError),
        ({"gap_event": "a\nb"}, ValueError),
        ({"on_subscribers": 1}, TypeError),
    ],
)
def test_options_are_checked(options: Any, error: type[Exception]) -> None:
    (name,) = options
    with pytest.raises(error, match="event" if name == "gap_event" else name):
        Hub(**options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"last_event_id": 1}, TypeError),
        ({"history": -1}, ValueError),
        ({"history": 1.0}, TypeError),
        ({"policy": "wait"}, ValueError),
    ],
)
async def test_parameters_are_checked(options: Any, error: type[Exception]) -> None:
    (name,) = options
    with pytest.raises(error, match=name):
        Hub().subscribe("news", **options)
    with pytest.raises(TypeError, match="at least one topic"):
        Hub().subscribe()


@pytest.mark.parametrize("woken", [False, True])
async def test_a_cancelled_step_loses_nothing(woken: bool) -> None:
    """Not even one that was about to have something."""
    hub = Hub()
    subscription = hub.subscribe("news")
    got: list[bytes] = []

    async def step(*, task_status: Any) -> None:
        with anyio.CancelScope() as scope:
            task_status.started(scope)
            got.append(await anext(subscription))

    for number in range(5):
        async with anyio.create_task_group() as tasks:
            scope = await tasks.start(step)
            await anyio.wait_all_tasks_blocked()
            if woken:
                await hub.publish("news", str(number))
            scope.cancel()
        if not woken:
            await hub.publish("news", str(number))
    async with anyio.create_task_group() as tasks:
        await hub.publish("news", "last")
        await tasks.start(step)
    data = b"".join(got)
    assert [line for line in data.split(b"\n") if line.startswith(b"data: ")] == [
        b"data: " + name for name in (b"0", b"1", b"2", b"3", b"4", b"last")
    ]
    await subscription.aclose()
