"""What holds where a topic ends, whatever the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sse_asgi import CloseReason, SSERequest, sse_app
from sse_asgi.hub import Hub, TopicEndedError
from sse_asgi.starlette import EventSourceResponse
from sse_asgi.testing import connect
from sse_asgi.types import ASGIApp, Receive, Scope, Send

from .hub_model import subscribe
from .streams import Recorder
from .test_hub import back, receive, stream_of

DEADLINE = 10.0


async def until_begun(hub: Hub, topic: str, count: int = 1) -> None:
    with anyio.fail_after(DEADLINE):
        while hub.subscribers(topic) < count:
            await anyio.sleep(0.001)


async def ends(stream: Any) -> None:
    """It ends as a stream does whose source is at its end."""
    with anyio.fail_after(DEADLINE):
        assert [event async for event in stream] == []


def awaited(hub: Hub, *names: str, **options: Any) -> ASGIApp:
    """A factory that is a coroutine function."""

    async def factory(request: SSERequest) -> Any:
        await anyio.lowlevel.checkpoint()
        return subscribe(hub, names, last_event_id=request.last_event_id, **options)

    return sse_app(factory)


def of_starlette(hub: Hub, *names: str, **options: Any) -> ASGIApp:
    """A response of Starlette."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        given = SSERequest(scope).last_event_id
        subscription = subscribe(hub, names, last_event_id=given, **options)
        await EventSourceResponse(subscription)(scope, receive, send)

    return app


WAYS: dict[str, Callable[..., ASGIApp]] = {
    "sse_app": stream_of, "awaited": awaited, "starlette": of_starlette,
}  # fmt: skip


class Ends:
    """The tests. `hub` and `other` are two nodes of one hub, or the same."""

    async def test_streams_end_after_the_final_event(self, hub: Hub, other: Hub) -> None:
        recorder = Recorder()
        app = sse_app(lambda: other.subscribe("t"), on_close=recorder.on_close)
        async with connect(app) as stream:
            await until_begun(other, "t")
            await other.position("t")
            await hub.publish("t", "a")
            await hub.publish("t", "b", final=True)
            assert await receive(stream, 2) == ["a", "b"]
            await ends(stream)
        assert recorder.reports[0].reason is CloseReason.FINISHED
        assert other.subscribers() == 0

    @pytest.mark.parametrize("way", WAYS)
    async def test_who_comes_late_gets_the_rest_and_then_204(
        self, hub: Hub, other: Hub, way: str
    ) -> None:
        app = WAYS[way](other, "t")
        ids = [await hub.publish("t", data) for data in "ab"]
        ids.append(await hub.publish("t", "c", final=True))
        for number, rest in enumerate(["bc", "c"]):
            async with connect(app, headers=back(ids[number])) as stream:
                assert stream.status_code == 200
                assert await receive(stream, len(rest)) == list(rest)
                await ends(stream)
        for headers in (back(ids[2]), {}):  # and one that begins with what comes next
            async with connect(app, headers=headers) as stream:
                assert stream.status_code == 204
                await ends(stream)
        async with connect(WAYS[way](other, "t", history=2)) as stream:
            assert await receive(stream, 2) == ["b", "c"]
            await ends(stream)
        assert other.subscribers() == 0

    async def test_an_id_that_means_nothing_gets_a_gap_all_that_there_is_and_the_end(
        self, hub: Hub, other: Hub
    ) -> None:
        await hub.publish("t", "a")
        last = await hub.publish("t", "b", final=True)
        for given in ("nothing", f"{last}0"):
            async with connect(stream_of(other, "t"), headers=back(given)) as stream:
                assert (await stream.receive()).event == "gap"
                assert await receive(stream, 2) == ["a", "b"]
                await ends(stream)

    async def test_nothing_is_published_after_the_end(self, hub: Hub, other: Hub) -> None:
        first = await hub.publish("t", "a", key="a")
        final = await hub.publish("t", "b", key="b", final=True)
        for node in (hub, other):
            with pytest.raises(TopicEndedError, match="'t' has ended"):
                await node.publish("t", "c")
            with pytest.raises(TopicEndedError):
                await node.publish("t", "c", final=True)
            # But what may have failed is published again.
            assert await node.publish("t", "a", key="a") == first
            assert await node.publish("t", "b", key="b", final=True) == final
        assert await hub.publish("u", "another topic")

    async def test_a_stream_of_several_topics_ends_with_the_last_of_them(
        self, hub: Hub, other: Hub
    ) -> None:
        async with (
            connect(stream_of(other, "t", "u")) as both,
            connect(stream_of(other, "t", "u", policy="latest")) as latest,
            connect(stream_of(other, "t", "*")) as pattern,
        ):
            await until_begun(other, "t", 3)
            await hub.position("t", "u")
            await other.position("t", "u")
            await anyio.sleep(0.05)
            last = {}
            for topic in "tu":
                last[topic] = await hub.publish(topic, topic, final=True)
                for stream in (both, latest, pattern):
                    event = await stream.receive()
                    assert event.data == topic
            await ends(both)
            await ends(latest)
            await hub.publish("v", "v")
            assert await receive(pattern, 1) == ["v"]
        both_ids = ".".join(last.values())
        async with connect(stream_of(other, "t", "u"), headers=back(both_ids)) as stream:
            assert stream.status_code == 204
        async with connect(stream_of(other, "t", "w"), headers=back(last["t"])) as stream:
            assert stream.status_code == 200

    async def test_a_filter_may_take_the_final_event(self, hub: Hub, other: Hub) -> None:
        async with connect(stream_of(other, "t", each=lambda event: None)) as stream:
            await until_begun(other, "t")
            await other.position("t")
            final = await hub.publish("t", "a", final=True)
            await ends(stream)
            assert stream.last_event_id == final  # or it would come back again and again
        app = stream_of(other, "t", each=lambda event: None)
        async with connect(app, headers=back(final)) as stream:
            assert stream.status_code == 204

    async def test_who_was_kicked_before_the_response_starts_may_come_back(
        self, hub: Hub, other: Hub
    ) -> None:
        """It does not get 204, by which it would be told to stay away."""

        async def kicked() -> Any:
            subscription = other.subscribe("t")
            await anyio.lowlevel.checkpoint()
            other.kick(lambda each: each is subscription)
            return subscription

        await hub.publish("t", "a")
        async with connect(sse_app(kicked)) as stream:
            assert stream.status_code == 200
            await ends(stream)

    async def test_kick_sends_what_was_published_before(self, hub: Hub, other: Hub) -> None:
        """Also what the kicked one has not been told of yet."""
        async with connect(stream_of(other, "t")) as stream:
            await until_begun(other, "t")
            await other.position("t")
            expected = []
            for round_ in range(20):
                await hub.publish("t", str(round_))
                expected.append(str(round_))
            assert other.kick(lambda subscription: True, last={"event": "bye", "data": "now"}) == 1
            assert other.subscribers() == 0
            await hub.publish("t", "after")
            assert await receive(stream, 20) == expected
            with anyio.fail_after(DEADLINE):
                left = [(event.event, event.data) async for event in stream]
            assert left in ([("bye", "now")], [("message", "after"), ("bye", "now")])

    async def test_kicked_while_a_publisher_goes_on(self, hub: Hub, other: Hub) -> None:
        """What comes after the kick does not keep the stream open."""
        stop = anyio.Event()

        async def publish() -> None:
            while not stop.is_set():
                await hub.publish("t", "x" * 1000)

        async with anyio.create_task_group() as tasks, connect(stream_of(other, "t")) as stream:
            await until_begun(other, "t")
            tasks.start_soon(publish)
            await stream.receive()
            stream.stall()
            await anyio.sleep(0.05)
            other.kick(lambda subscription: True, last="bye")
            stream.resume()
            with anyio.fail_after(DEADLINE):
                *_, last = [event.data async for event in stream]
            assert last == "bye"
            stop.set()
