"""The hub against a model: whatever happens, a subscriber has it all, or is told what is missing.

The model is a list of events for each topic. Clients subscribe with any id that somebody ever had,
read, are too slow, are cancelled in the middle of a step, go and come back. The clock leaps, and a
new hub replaces the old one. Each frame that a client gets is held against what comes next for it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import trio.testing
from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.lowlevel import checkpoint
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sse_asgi.decoder import DecodedEvent
from sse_asgi.hub import EventTooLargeError, Hub, MemoryLog, TopicEndedError

from .hub_model import (
    NOT_KNOWN,
    SUBSCRIBED,
    TOPICS,
    Client,
    Topic,
    checkpoints,
    raised,
    read_id,
    subscribe,
)

#: So many checkpoints, and whoever can go on has gone on.
MANY = 30


class LeapingLoop(asyncio.SelectorEventLoop):
    """A loop whose clock can be put forward."""

    leapt = 0.0

    def time(self) -> float:
        return super().time() + self.leapt


class HubMachine(RuleBasedStateMachine):
    """The rules."""

    def __init__(self, portal: BlockingPortal, leap: Any) -> None:
        super().__init__()
        self.portal = portal
        self.leap = leap
        self.now = 0.0
        self.ready = False
        self.number = 0
        self.topics: dict[str, Topic] = {}
        self.clients: list[Client] = []
        self.ids: list[str] = []

    def teardown(self) -> None:
        if self.ready:
            self.call(self.finish)

    def call(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run it in the event loop. After a failure there is nothing more to be seen."""
        self.ready = False
        self.portal.call(function, *args)
        self.ready = True

    # -- the hub ---------------------------------------------------------------------------------

    @initialize(
        max_events=st.sampled_from([1, 3, 1000]),
        max_bytes=st.sampled_from([40, 100, 2**20]),
        max_age=st.sampled_from([None, None, 10]),
    )
    def begin(self, max_events: int, max_bytes: int, max_age: float | None) -> None:
        self.limits = (max_events, max_bytes, max_age)
        self.new_hub()
        self.ready = True

    def new_hub(self) -> None:
        self.log = MemoryLog(*self.limits)
        self.hub = Hub(self.log)
        self.topics.clear()
        self.forgotten: dict[str, list[float]] = {}
        self.call(self.look)

    async def look(self) -> None:
        """The epochs of topics that do not exist."""
        self.absent = {name: self.log.position(name).epoch for name in TOPICS}
        assert list(self.log.topics()) == []

    @rule()
    @precondition(lambda self: len(self.topics) == len(TOPICS) and len(self.clients) > 2)
    def restart(self) -> None:
        """All epochs are new."""
        self.call(self.finish)
        self.new_hub()

    @rule(seconds=st.sampled_from([4, 20, 400]))
    def wait(self, seconds: float) -> None:
        self.portal.call(self.leap, seconds)
        self.now += seconds

    @rule(topics=st.sets(st.sampled_from(TOPICS), min_size=1))
    def position(self, topics: set[str]) -> None:
        async def position() -> None:
            await self.learn()
            before = self.log.topics()
            self.ids.append(await self.hub.position(*topics))
            assert set(self.log.topics()) == set(before)

        self.call(position)

    # -- publish ---------------------------------------------------------------------------------

    async def publish(
        self,
        topic: str,
        size: int = 0,
        collapse_key: str | None = None,
        key: str | None = None,
        final: bool = False,
    ) -> None:
        self.number += 1
        data = f"{topic}:{self.number}:{'x' * size}"
        length = len(f"data: {data}\n\n")
        publish = self.hub.publish(topic, data, key=key, collapse_key=collapse_key, final=final)
        if length > self.limits[1]:
            assert await raised(publish) is EventTooLargeError
            return
        await self.learn()
        if topic in self.topics and self.topics[topic].ended:
            assert await raised(publish) is TopicEndedError
            return
        position = await publish
        await self.learn()
        known = self.topics[topic]
        if key is not None and position != f"{known.epoch}-{known.last + 1}":
            raise AssertionError("a new key, and no new event")
        known.events.append((data, length, collapse_key, self.now))
        known.ended = final
        assert position == f"{known.epoch}-{known.last}"
        self.ids.append(position)
        if key is not None:
            assert await self.hub.publish(topic, "again", key=key) == position

    async def learn(self) -> None:
        """What topics there are now."""
        for name in self.topics.keys() - set(self.log.topics()):
            self.forget(name)
        for name in self.log.topics():
            position = self.log.position(name)
            known = self.topics.get(name)
            if known is None or known.epoch != position.epoch:
                if known is not None:
                    self.forget(name)
                self.topics[name] = Topic(position.epoch, created=anyio.current_time())

    def forget(self, name: str) -> None:
        known = self.topics.pop(name)
        assert self.first(known) > known.last, "forgotten, with events"
        self.forgotten.setdefault(name, []).append(known.created)

    def first(self, topic: Topic) -> int:
        """The oldest event that the log still has."""
        return topic.first(*self.limits, self.now)

    @rule(
        topic=st.sampled_from(TOPICS),
        count=st.integers(1, 3),
        size=st.sampled_from([0, 0, 0, 20, 30000]),
        collapse_key=st.sampled_from([None, "x", "y"]),
        key=st.booleans(),
    )
    def publishes(
        self, topic: str, count: int, size: int, collapse_key: str | None, key: bool
    ) -> None:
        async def publish() -> None:
            for _ in range(count):
                await self.publish(topic, size, collapse_key, f"key {self.number}" if key else None)

        self.call(publish)

    @rule(topic=st.sampled_from(TOPICS), really=st.sampled_from([False, False, True]))
    def finish_topic(self, topic: str, really: bool) -> None:
        if really:
            self.call(self.publish, topic, 0, None, None, True)

    # -- subscribe -------------------------------------------------------------------------------

    @rule(
        topics=st.sampled_from(SUBSCRIBED),
        policy=st.sampled_from(["gap", "gap", "disconnect", "latest"]),
        history=st.sampled_from([None, None, 0, 1, 5]),
        past=st.sampled_from(["none", "none", "earlier", "earlier", "own", "future", "garbage"]),
        data=st.data(),
    )
    @precondition(lambda self: len(self.clients) < 4)
    def subscribe(
        self, topics: tuple[str, ...], policy: Any, history: int | None, past: str, data: Any
    ) -> None:
        given = None
        if past == "garbage":
            given = data.draw(st.sampled_from(["?", "1", "-", "abc-0", "abc-1.abc-2", "x" * 3000]))
        elif past != "none" and self.ids:
            given = data.draw(st.sampled_from(self.ids[:-9:-1] if past == "own" else self.ids))
            if past == "future":
                # So far ahead that no event is there when the client first reads.
                given = re.sub("[0-9]+$", lambda found: str(int(found[0]) + 10**6), given)

        async def come() -> None:
            await self.learn()
            before = set(self.log.topics())
            subscription = subscribe(
                self.hub, topics, last_event_id=given, history=history, policy=policy
            )
            await self.learn()
            client = Client(subscription, topics, given, policy, {})
            said = None if given is None else read_id(given)
            known = {t.epoch for name, t in self.topics.items() if client.wants(name)}
            absent = {name: epoch for name, epoch in self.absent.items() if client.wants(name)}
            named = absent.keys() & {*self.topics, *topics}
            if said and any(epoch in said for name, epoch in absent.items() if name not in named):
                return  # they may be created before it begins, or after
            known |= {absent[name] for name in named}
            strange = said is None or not said.keys() <= known
            for name in {*before, *(name for name in topics if "*" not in name)}:
                if not client.wants(name):
                    continue
                topic = self.topics.get(name)
                if (
                    said is not None
                    and self.absent.get(name) in said
                    and (topic is None or topic.epoch not in said)
                ):
                    client.had[name] = (self.absent[name], said[self.absent[name]])
                elif topic is None and given is None:
                    client.had[name] = self.log.position(name)[:2]
                elif topic is None:  # from its id nothing is known of it
                    client.had[name] = ("", NOT_KNOWN)
                elif given is None:
                    oldest = min(self.first(topic) - 1, topic.last)
                    begin = max(topic.last - (history or 0), oldest)
                    client.had[name] = (topic.epoch, begin)
                    client.ends[name] = topic.last
                elif said is not None and topic.epoch in said:
                    offset = said[topic.epoch]
                    future = offset > topic.last
                    client.had[name] = (topic.epoch, NOT_KNOWN if future else offset)
                elif not strange and name not in topics:
                    client.had[name] = (topic.epoch, 0)
                else:
                    client.had[name] = (topic.epoch, NOT_KNOWN)
            self.clients.append(client)

        self.call(come)

    @rule(data=st.data(), how=st.sampled_from(["aclose", "close", "kick", "kick and say"]))
    @precondition(lambda self: self.clients)
    def leave(self, data: Any, how: str) -> None:
        client = data.draw(st.sampled_from(self.clients))
        self.call(self.end, client, how)

    async def end(self, client: Client, how: str) -> None:
        counted = self.hub.subscribers()
        subscription = client.subscription
        is_over = subscription._over  # its topics have ended, and it does not know yet
        if how == "aclose":
            await subscription.aclose()
        elif how == "close":
            subscription.close()
        else:
            last = "bye" if how == "kick and say" else None
            kicked = self.hub.kick(lambda other: other is subscription, last=last)
            assert kicked == (not is_over)  # be it that it has not begun
        assert self.hub.subscribers() == counted - (client.begun and not is_over)
        if client in self.clients:
            self.clients.remove(client)
        client.ended = True
        if how == "kick and say" and not is_over:
            begun = subscription._beginning is None
            firsts = self.firsts()
            while (frame := await anext(subscription)) != b"data: bye\n\n":
                self.take(client, frame, firsts)
            if begun:
                self.has_everything(client)
        assert await raised(anext(subscription)) is StopAsyncIteration

    # -- read ------------------------------------------------------------------------------------

    @rule(
        data=st.data(),
        wait=st.sampled_from([0, 1, 2, 3, 4, MANY]),
        publish=st.lists(
            st.tuples(st.sampled_from([*TOPICS, "a new one"]), st.integers(0, 2)), max_size=6
        ),
        cancel=st.one_of(st.just(MANY), st.integers(0, 5)),
    )
    @precondition(lambda self: self.clients)
    def step(self, data: Any, wait: int, publish: list[tuple[str, int]], cancel: int) -> None:
        """One step of a client, while something is published. The step may be cancelled."""
        self.step_of(data.draw(st.sampled_from(self.clients)), wait, publish, cancel)

    def step_of(
        self, client: Client, wait: int, publish: list[tuple[str, int]], cancel: int
    ) -> None:
        async def step() -> None:
            frames: list[bytes] = []
            firsts = self.firsts()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.anext, client, frames)
                await checkpoints(wait)
                for topic, pause in publish:
                    new = topic not in TOPICS
                    await self.publish(f"a{self.number} is new" if new else topic)
                    await checkpoints(pause)
                await checkpoints(cancel)
                tasks.cancel_scope.cancel()
            await self.learn()
            client.begun = client.begun or bool(frames) or client.ended
            if frames:
                self.take(client, frames[0], firsts)
            elif cancel == MANY and not client.ended:
                self.has_everything(client)

        self.call(step)

    @rule(data=st.data(), checkpoints=st.integers(0, 5))
    @precondition(lambda self: self.clients)
    def give_up(self, data: Any, checkpoints: int) -> None:
        """Cancel a step in the middle."""
        self.step_of(data.draw(st.sampled_from(self.clients)), checkpoints, [], 0)

    @rule(data=st.data())
    @precondition(lambda self: self.clients)
    def read_all(self, data: Any) -> None:
        client = data.draw(st.sampled_from(self.clients))
        self.call(self.drain, client)

    async def anext(self, client: Client, frames: list[bytes]) -> None:
        client.begun = True
        try:
            frames.append(await anext(client.subscription))
        except StopAsyncIteration:
            await self.learn()
            if all(name in self.topics and self.topics[name].ended for name in client.topics):
                self.has_everything(client)
            else:
                assert client.policy == "disconnect"
            self.clients.remove(client)
            client.ended = True

    async def drain(self, client: Client) -> None:
        """All that there is for it, until it waits."""
        while not client.ended:
            firsts = self.firsts()
            frames: list[bytes] = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.anext, client, frames)
                for _ in range(MANY):
                    if frames or client.ended:
                        break
                    await checkpoint()
                tasks.cancel_scope.cancel()
            await self.learn()
            if frames:
                self.take(client, frames[0], firsts)
            elif not client.ended:
                self.has_everything(client)
                return

    def firsts(self) -> dict[str, int]:
        return {topic.epoch: self.first(topic) for topic in self.topics.values()}

    # -- what must hold --------------------------------------------------------------------------

    def next_had(self, client: Client, name: str) -> tuple[str, int]:
        """How far it has come in a topic."""
        topic = self.topics[name]
        epoch, offset = client.had.setdefault(name, (topic.epoch, 0))  # a new topic
        if epoch == self.absent.get(name):
            return epoch, offset
        if epoch != topic.epoch:
            return topic.epoch, NOT_KNOWN
        return epoch, offset

    def take(self, client: Client, frame: bytes, firsts: dict[str, int]) -> None:
        newest: dict[tuple[str, str], int] = {}
        skipped: list[tuple[str, str, int]] = []
        for event in client.decoder.feed(frame):
            if event.event == "gap" and self.is_about_no_topic(client, event):
                continue
            if event.event == "gap":
                self.take_gap(client, event, firsts)
            else:
                name = event.data.split(":")[0]
                topic = self.topics[name]
                epoch, offset = self.next_had(client, name)
                assert offset != NOT_KNOWN, "a gap was not said"
                if epoch == self.absent.get(name):
                    assert not self.came_and_went(name, offset), "a gap was not said"
                    epoch, offset = topic.epoch, 0
                place = [data for data, *_ in topic.events].index(event.data) + 1
                if name not in client.began and offset + 1 < self.first(topic):
                    offset = max(offset, min(place - 1, client.ends.get(name, 0)))
                if client.policy == "latest":
                    for older in range(offset + 1, place):
                        collapse_key = topic.events[older - 1][2]
                        assert collapse_key is not None, f"{older} is missing"
                        skipped.append((name, collapse_key, older))
                    if (collapse_key := topic.events[place - 1][2]) is not None:
                        newest[name, collapse_key] = place
                    assert place > offset
                else:
                    assert place == offset + 1
                client.had[name] = (epoch, place)
                client.began.add(name)
            self.check_id(client, event)
            self.ids.append(event.id)
        for name, collapse_key, place in skipped:
            assert newest.get((name, collapse_key), 0) > place, "no newer one was sent"
        assert client.decoder.feed(b"") == []

    def is_about_no_topic(self, client: Client, event: DecodedEvent) -> bool:
        """Whether it says that the id of a client with a pattern names topics that are gone."""
        data = json.loads(event.data)
        if not client.patterns or "topic" in data:
            return False
        assert client.given is not None
        assert not client.began
        assert data["after"] == client.given[:64]
        assert data["missed"] is None
        assert data["position"] == (event.id or None)
        given = read_id(client.given)
        there = {topic.epoch for name, topic in self.topics.items() if client.wants(name)}
        assert given is None or not given.keys() <= there
        return True

    def came_and_went(self, name: str, moment: int) -> bool:
        """Whether the topic was there after this moment, and was forgotten."""
        return any(moment / 1000 < created + 1 for created in self.forgotten.get(name, ()))

    def may_have_come_and_gone(self, name: str, moment: int) -> bool:
        """Whether the log may say so, or that the moment has not come yet."""
        topic = self.topics.get(name)
        until = anyio.current_time() if topic is None else topic.created
        long = self.limits[2] is not None and until - moment / 1000 > 295
        return long or moment / 1000 > until - 1

    def take_gap(self, client: Client, event: DecodedEvent, firsts: dict[str, int]) -> None:
        data = json.loads(event.data)
        alone = not client.patterns and len(client.topics) == 1
        assert alone != ("topic" in data)
        name = data.get("topic", client.topics[0])
        said = read_id(event.id) if event.id else {}
        assert said is not None
        assert data["position"] == (event.id or None)
        absent = self.absent.get(name, "")
        before, moment = client.had.get(name, ("", NOT_KNOWN))
        if before == absent and data["missed"] is None:
            assert self.may_have_come_and_gone(name, moment), "nothing is missing"
            client.had[name] = ("", NOT_KNOWN)
        elif before == absent:  # it begins with the first event, which is gone
            assert not self.came_and_went(name, moment)
            client.had[name] = (self.topics[name].epoch, 0)
        if absent in said or name not in self.topics or self.topics[name].epoch not in said:
            assert data["missed"] is None
            moment = said.get(absent, int(anyio.current_time() * 1000))
            client.had[name] = (absent, moment)
            client.began.add(name)
            return
        topic = self.topics[name]
        epoch, offset = self.next_had(client, name)
        # So much is in the log, or was when it was looked.
        assert firsts.get(epoch, 1) <= said[epoch] + 1 <= self.first(topic)
        if name not in client.began and offset != NOT_KNOWN and name in client.ends:
            assert offset <= said[epoch] - data["missed"] <= client.ends[name]
            offset = said[epoch] - data["missed"]
        own = f"{epoch}-{offset}"
        if offset == NOT_KNOWN:
            assert data["missed"] is None
        else:
            assert data["missed"] == said[epoch] - offset > 0
        after = {own} if name in client.began else {own, client.given and client.given[:64]}
        if before != absent and (offset != NOT_KNOWN or client.given):
            assert data["after"] in after
        client.had[name] = (epoch, said[epoch])
        client.began.add(name)

    def check_id(self, client: Client, event: DecodedEvent) -> None:
        """That a client comes back with an id that says what it has had, no more and no less."""
        said = read_id(event.id) if event.id else {}
        assert said is not None
        now = {name: self.next_had(client, name) for name in self.topics if client.wants(name)}
        beginning = {  # of those that are created, and of which it has had nothing
            self.topics[name].epoch
            for name, (epoch, _) in client.had.items()
            if name in self.topics and epoch == self.absent.get(name)
        }
        assert said.keys() <= {epoch for epoch, _ in client.had.values()} | beginning
        assert {said.get(epoch, 0) for epoch in beginning} <= {0}
        for name, (epoch, offset) in now.items():
            if offset == NOT_KNOWN or epoch == self.absent.get(name):
                continue
            if epoch in said:
                assert said[epoch] == offset
            else:
                assert offset == 0, "the id has no place for what it has had"
                assert name not in client.topics

    def has_everything(self, client: Client) -> None:
        for name, topic in self.topics.items():
            if client.wants(name):
                epoch, offset = self.next_had(client, name)
                if name not in client.began and offset != NOT_KNOWN:
                    oldest = min(self.first(topic) - 1, client.ends.get(name, 0))
                    offset = max(offset, oldest)
                assert (epoch, offset) == (topic.epoch, topic.last)

    async def finish(self) -> None:
        """All read to the end; nothing is left behind."""
        for client in tuple(self.clients):
            await self.drain(client)
            if not client.ended:
                await self.end(client, "close")
        assert self.hub.subscribers() == 0


def put_loop_forward(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, LeapingLoop)
    loop.leapt += seconds


def test_model(anyio_backend: str) -> None:
    options: dict[str, Any] = {"loop_factory": LeapingLoop}
    leap: Any = put_loop_forward
    if anyio_backend == "trio":
        clock = trio.testing.MockClock()
        options, leap = {"clock": clock}, clock.jump
    with start_blocking_portal(anyio_backend, options) as portal:
        machine: Any = lambda: HubMachine(portal, leap)  # noqa: E731
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=60,
                stateful_step_count=50,
                deadline=None,
                derandomize=True,
                phases=[Phase.generate],  # to shrink a failure takes minutes
            ),
        )
