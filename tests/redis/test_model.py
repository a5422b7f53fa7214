"""Two hubs on one Redis against a model: whatever happens, a subscriber has it all, or is told.

Both publish, clients come to either with any id that somebody ever had, are too slow, are cancelled
in the middle; nodes go and come back, connections are cut, and Redis comes back empty or with older
data, also to nodes that know nothing of what was lost. What an id says once it says for ever.

If nobody knew what was lost, the epoch stays. For the model it is another one, with a name of its
own: it shares the events before the loss with the old one, and none of those after it.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.lowlevel import checkpoint
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from sse_asgi.decoder import DecodedEvent
from sse_asgi.hub import Hub, Subscription, TopicEndedError, TopicRunningError
from sse_asgi.hub.redis import RedisLog
from sse_asgi.hub.redis.link import Call

from ..hub_model import (
    NOT_KNOWN,
    SUBSCRIBED,
    TOPICS,
    Client,
    Topic,
    checkpoints,
    raised,
    subscribe,
)
from .servers import Connection, RedisServer

#: Where a client begins that has no id is known when it has its first event.
LIVE = -2

#: One of those that there are. How many that is, is a matter of time, and what is drawn must not
#: be: hypothesis refuses to go on then. So no rule has a precondition, either.
NUMBERS = st.integers(0, 999)

GARBAGE = ("?", "1", "-", "abc-0", "abc-1.abc-2", "x" * 3000)

ID = re.compile("([0-9a-z]+)(?:_([0-9a-z]+))?-([0-9]+)")

#: How long something may take at most, in seconds.
PATIENCE = 20.0


def real(epoch: str) -> str:
    """The epoch of the log that an epoch of the model stands for."""
    return epoch.partition("/")[0]


@dataclass(eq=False)
class NodeClient(Client):
    """A client of one of the nodes."""

    node: int = 0
    #: The topics that there were when it had its first frame: others it has from the beginning.
    born: set[str] | None = None
    #: What its last id says.
    said: dict[str, int] = field(default_factory=dict)


class TwoNodes(RuleBasedStateMachine):
    """The rules."""

    def __init__(
        self, portal: BlockingPortal, url: str, redis: Connection, new_prefix: Callable[[], str]
    ) -> None:
        super().__init__()
        self.portal = portal
        self.url = url
        self.redis = redis
        self.prefix = new_prefix()
        self.ready = False
        self.number = 0
        self.nodes: list[Hub | None] = [None, None]
        self.contexts: list[AbstractContextManager[object] | None] = [None, None]
        self.topics: dict[str, Topic] = {}
        #: The epochs of each topic, as they came, with the newest event of each.
        self.epochs: dict[str, list[str]] = {}
        self.meaning: dict[str, str] = {}
        #: The check of each event, by its data.
        self.checks: dict[str, str] = {}
        #: The epochs of the model that an epoch of the log stands for, as they came.
        self.named: dict[str, list[str]] = {}
        #: Those in which a part of an id has a place.
        self.places: dict[str, list[str]] = {}
        self.collapse_keys: dict[str, str | None] = {}
        self.clients: list[NodeClient] = []
        self.ids: list[str] = []
        #: The epochs of topics that do not exist, and who waits for these.
        self.absent: dict[str, str] = {}
        self.waiting: list[Subscription] = []
        #: All commands: they go on when a caller is cancelled.
        self.calls: list[Call[Any]] = []
        self.saved: tuple[dict[str, str | None], dict[str, Topic]] = {}, {}

    def call(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Run it in the event loop. After a failure there is nothing more to be seen."""
        self.ready = False

        async def bounded() -> None:
            with anyio.fail_after(PATIENCE):
                await function(*args)

        self.portal.call(bounded)
        self.ready = True

    def teardown(self) -> None:
        try:
            if self.ready:
                self.call(self.finish)
        finally:
            for node in range(2):
                self.close_node(node)
        if self.ready:
            self.call(self.no_connection)

    async def finish(self) -> None:
        for client in tuple(self.clients):
            await self.drain(client)
            client.subscription.close()
        for hub in self.nodes:
            assert hub is None or repr(hub) == "<Hub topics=0 subscribers=0>"

    async def no_connection(self) -> None:
        """Nothing is left behind at the server."""
        while len(self.redis.command("CLIENT", "LIST").splitlines()) > 1:
            await anyio.sleep(0.002)

    # -- nodes -----------------------------------------------------------------------------------

    @initialize(
        max_events=st.sampled_from([1, 3, 1000]), max_bytes=st.sampled_from([60, 150, 2**20])
    )
    def begin(self, max_events: int, max_bytes: int) -> None:
        self.redis.command("FLUSHALL")
        self.limits = max_events, max_bytes
        for node in range(2):
            self.open_node(node)
        self.call(self.look)

    def open_node(self, node: int) -> None:
        max_events, max_bytes = self.limits
        log = RedisLog(self.url, prefix=self.prefix, max_events=max_events, max_bytes=max_bytes)
        start = log._link.start

        def started(command: Callable[[Any], Awaitable[Any]]) -> Call[Any]:
            call = start(command)
            self.calls.append(call)
            return call

        log._link.start = started  # type: ignore[method-assign]
        hub = Hub(log)
        context = self.portal.wrap_async_context_manager(hub)
        context.__enter__()
        self.nodes[node], self.contexts[node] = hub, context

    def close_node(self, node: int) -> None:
        context, self.contexts[node], self.nodes[node] = self.contexts[node], None, None
        if context is not None:
            context.__exit__(None, None, None)

    def hub(self, node: int) -> Hub:
        """The node, or the other one."""
        hub = self.nodes[node] or self.nodes[1 - node]
        assert hub is not None
        return hub

    @rule(node=st.integers(0, 1))
    def leave(self, node: int) -> None:
        if not all(self.nodes):
            return
        hub = self.hub(node)
        self.close_node(node)
        assert repr(hub) == "<Hub topics=0 subscribers=0>"
        for client in tuple(self.clients):
            if client.node == node:
                self.clients.remove(client)
                self.call(self.has_ended, client)

    async def has_ended(self, client: NodeClient) -> None:
        client.ended = True
        try:
            await anext(client.subscription)
        except StopAsyncIteration:
            return
        raise AssertionError("there is something after the end")

    @rule()
    def come_back(self) -> None:
        if None in self.nodes:
            self.open_node(self.nodes.index(None))

    @rule()
    def cut(self) -> None:
        self.redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def at_once(self, *commands: tuple[object, ...]) -> list[Any]:
        self.redis.command("MULTI")
        for command in commands:
            self.redis.command(*command)
        replies: list[Any] = self.redis.command("EXEC")
        return replies

    @rule()
    def save(self) -> None:
        async def save() -> None:
            keys = self.redis.command("KEYS", f"{self.prefix}:*")
            dumps = dict(zip(keys, self.at_once(*(("DUMP", key) for key in keys)), strict=True))
            topics = {
                name: Topic(topic.epoch, list(topic.events), topic.ended)
                for name, topic in self.topics.items()
            }
            self.saved = dumps, topics

        self.call(save)

    @rule(empty=st.booleans(), cut=st.booleans(), node=st.integers(0, 1))
    def restore(self, empty: bool, cut: bool, node: int) -> None:
        """Redis comes back with older data. Of those who knew the newest event one comes first."""

        async def restore() -> None:
            for hub in filter(None, self.nodes):
                for name in self.topics:
                    await hub.position(name)
            dumps, topics = ({}, {}) if empty else self.saved
            back = [("RESTORE", key, 0, dump) for key, dump in dumps.items() if dump]
            self.at_once(("FLUSHALL",), *back)
            if cut:
                self.redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            for name, topic in self.topics.items():
                before = topics.get(name, Topic(""))
                position = await self.hub(node).position(name)
                epoch = ID.fullmatch(position)[1]  # type: ignore[index]
                if epoch == self.absent_epoch(name):
                    await self.create(name)
                    continue
                if epoch == real(topic.epoch):
                    assert before.events == topic.events, "events have gone in silence"
                else:
                    self.renew(name, epoch, before.events)
                    self.topics[name].ended = before.ended
                assert position == self.id_of(name)

        self.call(restore)

    @rule(
        name=st.sampled_from(TOPICS), lost=st.integers(0, 3), instead=st.integers(0, 3),
        node=st.integers(0, 1),
    )  # fmt: skip
    def lose_newest(self, name: str, lost: int, instead: int, node: int) -> None:
        """Redis loses the newest events. All who knew them are gone, too, but for the clients."""
        self.save()
        dumps, topics = self.saved
        had = self.ids[-2:]
        for _ in range(lost):
            self.call(self.publish, node, name)
        had += self.ids[len(self.ids) - lost :]
        for closed in range(2):
            self.close_node(closed)
        for client in tuple(self.clients):
            self.clients.remove(client)
            self.call(self.has_ended, client)
        self.at_once(("FLUSHALL",), *(("RESTORE", key, 0, dump) for key, dump in dumps.items()))
        for opened in range(2):
            self.open_node(opened)
        if lost:
            epoch = real(self.topics[name].epoch)
            self.renew(name, f"{epoch}/{len(self.named[epoch])}", topics[name].events)
        for _ in range(instead):
            self.call(self.publish, node, name)
        for given in had:
            self.come(node, (name,), "gap", given)
            self.call(self.drain, self.clients[-1])
            self.end(len(self.clients) - 1, "close")

    def renew(self, name: str, epoch: str, events: list[Any]) -> None:
        assert epoch not in self.epochs.setdefault(name, [])
        assert all(epoch not in epochs for epochs in self.epochs.values())
        self.epochs[name].append(epoch)
        self.named.setdefault(real(epoch), []).append(epoch)
        self.topics[name] = topic = Topic(epoch, list(events))
        for offset in range(len(events) + 1):
            self.mean(topic, offset)

    def mean(self, topic: Topic, offset: int) -> None:
        """An id has a place in an epoch."""
        part = self.part(topic, offset)
        data = topic.events[offset - 1][0] if offset else ""
        assert self.meaning.setdefault(part, data) == data, "a second meaning"
        self.places.setdefault(part, []).append(topic.epoch)

    def part(self, topic: Topic, offset: int) -> str:
        """The part of an id that stands for an event."""
        check = f"_{self.checks[topic.events[offset - 1][0]]}" if offset else ""
        return f"{real(topic.epoch)}{check}-{offset}"

    def id_of(self, name: str) -> str:
        """The position of a topic."""
        return self.part(self.topics[name], self.topics[name].last)

    def read(self, text: str) -> dict[str, int] | None:
        """What an id says: how far it is in each epoch of the model; the newest, if in several."""
        said: dict[str, int] = {}
        for part in text.split("."):
            found = ID.fullmatch(part)
            if found is None:
                return None
            epoch, _, offset = found.groups()
            if part in self.places:
                said[self.places[part][-1]] = int(offset)
            elif epoch not in self.named:
                said[epoch] = int(offset)
        return said

    async def look(self) -> None:
        """Nothing exists, and a look creates nothing. Clients come that wait for it."""
        for name in TOPICS:
            position = await self.hub(0).position(name)
            self.absent[name] = ID.fullmatch(position)[1]  # type: ignore[index]
            self.ids.append(position)
            self.waiting.append(self.hub(1).subscribe(name, last_event_id=position))
        assert not [key for key in self.redis.command("KEYS", "*") if "bell" not in key]
        for name, subscription in zip(TOPICS, self.waiting, strict=True):
            await self.publish(0, name)
            frame = await anext(subscription)
            assert self.topics[name].events[0][0].encode() in frame, "the first event is missing"
            subscription.close()

    async def create(self, name: str) -> None:
        """Publish to a topic if it does not exist any more."""
        position = await self.hub(0).position(name)
        if ID.fullmatch(position)[1] == self.absent_epoch(name):  # type: ignore[index]
            self.ids.append(position)
            await self.publish(0, name)

    def begins_after(self, epoch: str, moment: int) -> bool:
        """Whether an epoch has begun after a moment, in milliseconds."""
        return moment <= int(real(epoch)[6:], 36) // 1000

    def absent_epoch(self, name: str) -> str:
        """The epoch of the positions in a topic that does not exist."""
        return real(self.topics[name].epoch)[:6] + "0"

    # -- publish ---------------------------------------------------------------------------------

    def first(self, topic: Topic) -> int:
        """The oldest event that the log still has."""
        return topic.first(*self.limits)

    def new_data(self, topic: str, size: int = 0) -> str:
        self.number += 1
        return f"{topic}:{self.number}:{'x' * size}"

    def appended(
        self, name: str, position: str, data: str, collapse_key: str | None, size: int = 0
    ) -> None:
        """An event is there, after all that were."""
        found = ID.fullmatch(position)
        assert found is not None
        epoch, check, offset = found.groups()
        if name not in self.topics or (offset == "1" and real(self.topics[name].epoch) != epoch):
            self.renew(name, epoch, [])
        topic = self.topics[name]
        self.collapse_keys[data] = collapse_key
        self.checks[data] = check
        topic.events.append((data, size or len(f"data: {data}\n\n"), collapse_key, 0))
        assert position == self.id_of(name)
        self.mean(topic, topic.last)
        self.ids.append(position)

    async def publish(
        self, node: int, name: str, size: int = 0, collapse_key: str | None = None
    ) -> None:
        data = self.new_data(name, size)
        position = await self.hub(node).publish(name, data, collapse_key=collapse_key)
        self.appended(name, position, data, collapse_key)

    @rule(
        name=st.sampled_from([*TOPICS, *TOPICS, "new"]),
        at=st.lists(st.integers(0, 1), min_size=1, max_size=6),
        size=st.sampled_from([0, 0, 20]),
        collapse_key=st.sampled_from([None, "x", "y"]),
    )
    def publishes(self, name: str, at: list[int], size: int, collapse_key: str | None) -> None:
        """At both nodes at the same time."""
        topic = f"a{self.number} is new" if name == "new" else name

        async def publish() -> None:
            found: list[tuple[int, str, str]] = []

            async def one(node: int) -> None:
                data = self.new_data(topic, 0 if name == "new" else size)
                position = await self.hub(node).publish(topic, data, collapse_key=collapse_key)
                found.append((int(position.rpartition("-")[2]), position, data))

            async with anyio.create_task_group() as tasks:
                for node in at:
                    tasks.start_soon(one, node)
            for _, position, data in sorted(found):
                self.appended(topic, position, data, collapse_key)

        self.call(publish)

    @rule(
        name=st.sampled_from(TOPICS),
        node=st.integers(0, 1),
        count=st.integers(1, 4),
        cancel=st.one_of(st.none(), st.integers(0, 60)),
        cut=st.booleans(),
    )
    def publish_again(
        self, name: str, node: int, count: int, cancel: int | None, cut: bool
    ) -> None:
        """Publish an event at both nodes, cancel that, and publish it again: it is there once."""

        async def publish() -> None:
            data = self.new_data(name)
            key = f"key {self.number}"
            found: list[str] = []

            async def one(node: int) -> None:
                found.append(await self.hub(node).publish(name, data, key=key))

            async with anyio.create_task_group() as tasks:
                for number in range(count):
                    tasks.start_soon(one, (node + number) % 2)
                if cut:
                    await checkpoints(3)
                    self.redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                if cancel is not None:
                    await checkpoints(cancel)
                    tasks.cancel_scope.cancel()
            await one(1 - node)
            assert len(set(found)) == 1
            self.appended(name, found[0], data, None)
            for call in self.calls:  # of those that were cancelled
                await call.done.wait()

        self.call(publish)

    # -- runs ------------------------------------------------------------------------------------

    @rule(
        node=st.integers(0, 1),
        other=st.integers(0, 1),
        count=st.integers(0, 4),
        reason=st.sampled_from(["finished", "stopped", "interrupted"]),
        cut=st.booleans(),
    )
    def runs(self, node: int, other: int, count: int, reason: str, cut: bool) -> None:
        """A topic of its own ends with a run of one node; the other one stops it, or ends it."""
        self.number += 1
        name = f"a{self.number} runs"
        here, there = self.hub(node), self.hub(other)
        allowed = anyio.Semaphore(0)

        async def source(words: list[str]) -> AsyncIterator[str]:
            for word in words:
                await allowed.acquire()
                yield word
            await allowed.acquire()

        async def run() -> None:
            words = [self.new_data(name) for _ in range(count)]
            more = [] if reason == "finished" else ["never"]
            run = await here.run(name, source(words + more))
            assert await raised(there.run(name, source([]))) is TopicRunningError
            for offset, data in enumerate(words, 1):
                if cut and offset == 1:
                    self.redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                allowed.release()
                while (position := await there.position(name)).rpartition("-")[2] != str(offset):
                    await checkpoint()
                self.appended(name, position, data, None)
            if reason == "stopped":
                assert await there.stop(name)
            elif reason == "interrupted":
                await self.expire(there, name)
            allowed.release()  # it can say nothing more
            assert await run.wait() == reason
            size = len(f'event: end\ndata: {{"reason":"{reason}"}}\n\n')
            position = await there.position(name)
            self.appended(name, position, f"{name}:end:{reason}", None, size)
            self.topics[name].ended = True
            assert await raised(here.publish(name, "never")) is TopicEndedError
            assert await raised(there.run(name, source([]))) is TopicEndedError
            assert not await here.stop(name)

        self.call(run)

    async def expire(self, hub: Hub, name: str) -> None:
        """The lease of a runner ends, and a node sees that."""
        log: Any = hub._log
        shard = log.keys.shard(name)
        self.redis.command("ZADD", log.keys.runs(shard), "XX", 1, name)
        await log._link.start(partial(log.script.run, "expire", name, ())).result()

    # -- subscribe -------------------------------------------------------------------------------

    @rule(
        node=st.integers(0, 1),
        topics=st.sampled_from(SUBSCRIBED),
        policy=st.sampled_from(["gap", "gap", "disconnect", "latest"]),
        past=st.sampled_from(["none", "earlier", "earlier", "now", "own", "future", "garbage"]),
        which=NUMBERS,
    )
    def subscribe(
        self, node: int, topics: tuple[str, ...], policy: Any, past: str, which: int
    ) -> None:
        if len(self.clients) >= 4:
            return
        given = None
        if past == "garbage":
            given = GARBAGE[which % len(GARBAGE)]
        elif past == "now":
            plain = [name for name in topics if "*" not in name] or ["a1"]
            given = ".".join(map(self.id_of, plain))
        elif past != "none" and self.ids:
            ids = self.ids[:-9:-1] if past == "own" else self.ids
            given = ids[which % len(ids)]
            if past == "future":
                given = re.sub("[0-9]+$", lambda found: str(int(found[0]) + 1), given)
        self.come(node, topics, policy, given)

    def come(self, node: int, topics: tuple[str, ...], policy: Any, given: str | None) -> None:
        """A client subscribes, at the node or at the other one."""
        if self.nodes[node] is None:
            node = 1 - node
        said = {} if given is None else self.read(given) or {}
        had = {name: ("", NOT_KNOWN if given else LIVE) for name in topics if "*" not in name}
        for name, epochs in self.epochs.items():
            if any(re.fullmatch(topic.replace("*", ".*"), name) for topic in topics):
                known = [epoch for epoch in epochs if epoch in said]
                if known:
                    had[name] = known[-1], said[known[-1]]
                elif (absent := self.absent_epoch(name)) in said:
                    had[name] = absent, said[absent]
                elif name not in topics:
                    had[name] = "", LIVE

        async def begin() -> None:
            hub = self.hub(node)
            subscription = subscribe(hub, topics, last_event_id=given, policy=policy)
            self.clients.append(NodeClient(subscription, topics, given, policy, had, node=node))

        self.call(begin)

    @rule(node=st.integers(0, 1), name=st.sampled_from(TOPICS), history=st.integers(1, 5))
    def history(self, node: int, name: str, history: int) -> None:
        """A client that is there for a moment has exactly that."""

        async def look() -> None:
            topic = self.topics[name]
            begin = max(topic.last - history, self.first(topic) - 1)
            subscription = self.hub(node).subscribe(name, history=history)
            client = NodeClient(
                subscription, (name,), None, "gap", {name: (topic.epoch, begin)}, node=node
            )
            if begin < topic.last:
                await self.drain(client, mark=False)
            subscription.close()

        self.call(look)

    @rule(which=NUMBERS, how=st.sampled_from(["aclose", "close", "kick"]))
    def end(self, which: int, how: str) -> None:
        if not self.clients:
            return
        client = self.clients.pop(which % len(self.clients))
        hub = self.hub(client.node)

        async def end() -> None:
            if how == "aclose":
                await client.subscription.aclose()
            elif how == "close":
                client.subscription.close()
            else:
                assert hub.kick(lambda other: other is client.subscription) == 1
            await self.has_ended(client)

        self.call(end)

    # -- read ------------------------------------------------------------------------------------

    @rule(
        which=st.sets(st.integers(0, 3), min_size=1),
        cancel=st.integers(0, 80),
        publish=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(TOPICS)), max_size=4),
        cut=st.sampled_from([False, False, True]),
    )
    def step(self, which: set[int], cancel: int, publish: list[tuple[int, str]], cut: bool) -> None:
        """Steps of several clients, cancelled in the middle, while something is published."""
        chosen = [client for number, client in enumerate(self.clients) if number in which]

        async def step() -> None:
            frames: list[tuple[NodeClient, bytes]] = []

            async def one(client: NodeClient) -> None:
                if (frame := await self.anext(client)) is not None:
                    frames.append((client, frame))

            async with anyio.create_task_group() as tasks:
                for client in chosen:
                    tasks.start_soon(one, client)
                await checkpoints(cancel // 2)
                if cut:
                    self.redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                for node, name in publish:
                    await self.publish(node, name)
                await checkpoints(cancel)
                tasks.cancel_scope.cancel()
            for client, frame in frames:
                self.take(client, frame)
            for client in chosen:
                self.check_end(client)

        self.call(step)

    @rule(
        what=st.lists(
            st.tuples(st.sampled_from(["publish", "lose", "lose and publish"]), st.integers(0, 1)),
            min_size=1,
            max_size=3,
        ),
        name=st.sampled_from(TOPICS),
    )
    def live(self, what: list[tuple[str, int]], name: str) -> None:
        """Clients that have everything and wait are told of all that happens, by itself."""
        for action, node in what:
            for client in tuple(self.clients):
                self.call(self.drain, client)
            self.call(self.wait_for, action, node, name)

    async def wait_for(self, action: str, node: int, name: str) -> None:
        frames: dict[NodeClient, bytes | None] = {}
        clients = [client for client in self.clients if client.wants(name)]

        async def one(client: NodeClient) -> None:
            frames[client] = await self.anext(client)

        async with anyio.create_task_group() as tasks:
            for client in clients:
                tasks.start_soon(one, client)
            while any(
                client.subscription._wake is None and client not in frames for client in clients
            ):
                await checkpoint()
            if action != "publish":
                await self.lose(name)
            if action == "lose":
                await self.look_for_losses(name)
            else:
                await self.publish(node, name)
        for client in clients:
            if (frame := frames[client]) is not None:
                self.take(client, frame)
            self.check_end(client)

    async def lose(self, name: str) -> None:
        """A topic is gone, and both nodes knew it."""
        for hub in filter(None, self.nodes):
            await hub.position(name)
        for kind in ("log", "keys"):
            for key in self.redis.command("KEYS", f"{self.prefix}:*:{kind}:{name}"):
                self.redis.command("DEL", key)

    async def look_for_losses(self, name: str) -> None:
        """One node after the other sees what is gone, and that is all."""
        for hub in filter(None, self.nodes):
            epoch, _, _ = (await hub.position(name)).rpartition("-")
            assert epoch == self.absent_epoch(name)
        await self.create(name)

    @rule(which=NUMBERS)
    def read_all(self, which: int) -> None:
        if self.clients:
            self.call(self.drain, self.clients[which % len(self.clients)])

    async def anext(self, client: NodeClient) -> bytes | None:
        try:
            return await anext(client.subscription)
        except StopAsyncIteration:
            client.ended = True
            return None

    def check_end(self, client: NodeClient) -> None:
        """One that has ended had a reason."""
        if client.ended:
            self.clients.remove(client)
            assert client.policy == "disconnect"
            assert any(self.has_lost(client, name) for name in client.had), "without a reason"

    def has_lost(self, client: NodeClient, name: str) -> bool:
        """Whether the log may no longer have what comes next for it."""
        epoch, offset = client.had[name]
        topic = self.topics[name]
        return offset < 0 or epoch != topic.epoch or offset + 1 < self.first(topic)

    async def drain(self, client: NodeClient, *, mark: bool = True) -> None:
        """Read until it has everything; markers say that there is nothing more."""
        wanted = [name for name in self.topics if client.wants(name)]
        marked = [name for name in wanted if mark and not self.topics[name].ended]
        marks = marked
        patience = 0.05
        while not client.ended:
            for name in marks:
                await self.publish(client.node, name)
            frame = None
            with anyio.move_on_after(patience if mark else PATIENCE) as scope:
                frame = await self.anext(client)
            patience *= 1.5  # a busy machine must not cancel its beginning again and again
            if frame is not None:
                self.take(client, frame)
            self.check_end(client)
            if all(
                client.had.get(name) == (self.topics[name].epoch, self.topics[name].last)
                for name in wanted
                if not self.has_nothing(client, name)
            ):
                return
            marks = marked if scope.cancelled_caught else []

    def has_nothing(self, client: NodeClient, name: str) -> bool:
        """Whether a topic had ended before the client came, which gets none of its events."""
        if not self.topics[name].ended or (name not in client.had and client.born is None):
            return self.topics[name].ended
        return self.had(client, name)[1] == LIVE

    # -- what must hold --------------------------------------------------------------------------

    def take(self, client: NodeClient, frame: bytes) -> None:
        newest: dict[tuple[str, str], int] = {}
        skipped: list[tuple[str, str, int]] = []
        if client.born is None:
            client.born = set(self.topics)
        for event in client.decoder.feed(frame):
            said = self.read(event.id) if event.id else {}
            assert said is not None
            if event.event == "gap":
                self.take_gap(client, event, said)
            else:
                name, data = event.data.split(":")[0], event.data
                if event.event == "end":
                    name = self.ended_by(client, said)
                    data = f"{name}:end:{json.loads(event.data)['reason']}"
                epoch, place = self.said_of(name, said)
                assert self.data_at(epoch, place) == data
                before, offset = self.had(client, name)
                assert offset != NOT_KNOWN, "a gap was not said"
                if before == self.absent_epoch(name):
                    assert self.begins_after(epoch, offset), "a gap was not said"
                    before, offset = epoch, 0
                if offset != LIVE:
                    assert epoch == before, "another epoch, and no gap"
                    assert place > offset, "once more"
                    if client.policy != "latest":
                        assert place == offset + 1, "not told of a gap"
                    for older in range(offset + 1, place):
                        collapse_key = self.collapse_key(epoch, older)
                        assert collapse_key is not None, f"{older} is missing"
                        skipped.append((name, collapse_key, older))
                if (collapse_key := self.collapse_key(epoch, place)) is not None:
                    newest[name, collapse_key] = place
                client.had[name] = epoch, place
                client.began.add(name)
            self.check_id(client, said)
            client.said = said or client.said
            if event.id:
                self.ids.append(event.id)
        for name, collapse_key, place in skipped:
            assert newest.get((name, collapse_key), 0) > place, "no newer one was sent"
        assert client.decoder.feed(b"") == []

    def ended_by(self, client: NodeClient, said: dict[str, int]) -> str:
        """The topic whose end is the news of an id."""
        found = [
            name
            for name, epochs in self.epochs.items()
            for epoch in epochs
            if epoch in said
            and client.said.get(epoch) != said[epoch]
            and client.had.get(name) != (epoch, said[epoch])
            and f"{name}:end:" in self.data_at(epoch, said[epoch])
        ]
        # Its first id also has those that had ended before it came.
        known = [name for name in found if self.had(client, name)[1] != LIVE]
        return (known or found)[-1]

    def data_at(self, epoch: str, offset: int) -> str:
        (part,) = (
            part
            for part, epochs in self.places.items()
            if epoch in epochs and part.endswith(f"-{offset}")
        )
        return self.meaning[part]

    def collapse_key(self, epoch: str, offset: int) -> str | None:
        return self.collapse_keys[self.data_at(epoch, offset)]

    def said_of(self, name: str, said: dict[str, int]) -> tuple[str, int]:
        (epoch,) = (epoch for epoch in said if epoch in self.epochs[name])
        return epoch, said[epoch]

    def had(self, client: NodeClient, name: str) -> tuple[str, int]:
        if name not in client.had:  # it matches a pattern
            new = client.born is not None and name not in client.born
            # One that was lost before the node looked at it is not new any more.
            new = new and len(self.epochs[name]) == 1
            client.had[name] = (self.epochs[name][0], 0) if new else ("", LIVE)
        return client.had[name]

    def take_gap(self, client: NodeClient, event: DecodedEvent, said: dict[str, int]) -> None:
        data = json.loads(event.data)
        assert data["position"] == (event.id or None)
        name = data.get("topic", client.topics[0])
        if "*" in name:  # the id of a client with a pattern names what is gone
            assert client.given is not None
            assert data["after"] == client.given[:64]
            assert data["missed"] is None
            return
        assert ("topic" in data) == (client.patterns or len(client.topics) > 1)
        before, offset = self.had(client, name)
        absent = self.absent_epoch(name)
        if not said.keys() & {*self.epochs[name]}:  # it did not exist
            assert before != absent, "nothing is missing"
            assert data["missed"] is None
            client.had[name] = absent, said.get(absent, 0)
            client.began.add(name)
            return
        epoch, place = self.said_of(name, said)
        if before == absent:
            begins = self.begins_after(epoch, offset)
            before, offset = (epoch, 0) if begins else ("", NOT_KNOWN)
        if epoch == before and offset >= 0 and data["missed"] is not None:
            assert data["missed"] == place - offset > 0, "nothing is missing"
        elif epoch == before and offset >= 0:
            assert client.given is not None
            assert offset == (self.read(client.given) or {}).get(epoch), "nothing is missing"
            assert offset > place, "nothing is missing"
        elif offset >= 0:
            # If the log no longer has the event, nothing tells that it was lost, and not forgotten.
            forgotten = real(epoch) == real(before) and offset < place
            # One that matches a pattern may have come to this node only now.
            is_new = name not in client.topics and name not in client.began
            if not (is_new and data["missed"] == place):
                assert data["missed"] == (place - offset if forgotten else None)
            epochs = self.epochs[name]
            assert epochs.index(epoch) > epochs.index(before), "back to an old epoch"
        topic = self.topics[name]
        if epoch == topic.epoch:
            assert place + 1 <= self.first(topic), "there is more in the log"
        client.had[name] = epoch, place
        client.began.add(name)

    def check_id(self, client: NodeClient, said: dict[str, int]) -> None:
        """That a client comes back with an id that says what it has had."""
        for name, (epoch, offset) in client.had.items():
            if epoch == self.absent_epoch(name):  # to which it adds the time
                assert said.get(epoch, offset) >= offset
            elif epoch in said or name in client.began:
                assert said.get(epoch) == offset


def test_two_nodes(anyio_backend: str, new_prefix: Callable[[], str]) -> None:
    with (
        RedisServer() as server,
        server.connect() as connection,
        start_blocking_portal(anyio_backend) as portal,
    ):
        machine: Any = lambda: TwoNodes(portal, server.url, connection, new_prefix)  # noqa: E731
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=12,
                stateful_step_count=40,
                deadline=None,
                derandomize=True,
                phases=[Phase.generate],  # to shrink a failure takes minutes
            ),
        )
