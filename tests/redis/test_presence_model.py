"""Presence of several nodes on one Redis against a model: whatever happens, it is right in the end.

Subscriptions come and go, nodes are closed and die, connections are cut, and Redis loses all that
it has. After each of that all nodes know who is there within their bound, and whoever has read all
changes knows it too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sse_asgi.hub import Hub, HubError, PresenceEvents, Subscription
from sse_asgi.hub.redis import RedisLog, presence

from .faulty_proxy import FaultyProxy
from .servers import RedisServer
from .test_presence import SOON, die

NODES = 3

TOPICS = ["room/1", "room/2"]

INFOS = [None, "a", "ab", {"c": 1, "d": "\u00e4"}]

events = st.one_of(
    st.tuples(
        st.just("come"),
        st.integers(0, NODES - 1),
        st.sampled_from([*TOPICS, "room/*"]),
        st.sampled_from(INFOS),
    ),
    st.tuples(st.just("go"), st.integers(0, 9)),
    st.tuples(st.just("go"), st.integers(0, 9)),
    st.tuples(st.just("disconnect"), st.integers(0, NODES - 1), st.sampled_from(TOPICS)),
    st.tuples(st.sampled_from(["die", "close", "cut"]), st.integers(0, NODES - 1)),
    st.tuples(st.sampled_from(["flush", "check"])),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.1, 0.5])),
)


class Node:
    """A hub, its subscriptions, and what it is told."""

    def __init__(self, proxy: FaultyProxy, prefix: str, tasks: TaskGroup) -> None:
        self.proxy = proxy
        log = RedisLog(proxy.url, prefix=prefix, shards=2, timeout=2.0)
        self.hub = Hub(log, presence=True, presence_grace=0.05)
        self.open: list[tuple[Subscription, str, Any]] = []
        self.told: dict[str, set[str]] = {}
        self._tasks = tasks

    async def begin(self) -> None:
        await self.hub.__aenter__()
        for topic in TOPICS:
            self._tasks.start_soon(self._read, topic, self.hub.presence_events(topic))

    def messages(self) -> list[str]:
        """The messages that it has had."""
        log = self.hub._log
        assert isinstance(log, RedisLog)
        return list(log.presence._seen)

    async def _read(self, topic: str, events: PresenceEvents) -> None:
        async for event in events:
            value = json.loads(event.data or "")
            if event.event == "presence":
                self.told[topic] = set(map(key, value))
            elif event.event == "join":
                assert key(value) not in self.told[topic], "joins twice"
                self.told[topic].add(key(value))
            else:
                assert key(value) in self.told[topic], "leaves twice"
                self.told[topic].remove(key(value))

    async def come(self, topic: str, info: Any) -> None:
        if "*" in topic:
            subscription = self.hub.subscribe(patterns=[topic], info=info)
        else:
            subscription = self.hub.subscribe(topic, info=info)
        self.open.append((subscription, topic, info))
        self._tasks.start_soon(self._follow, subscription)
        with anyio.fail_after(SOON):
            while subscription not in self.hub._registry.awaited:
                await anyio.sleep(0.001)

    async def _follow(self, subscription: Subscription) -> None:
        try:
            async for _ in subscription:
                pass
        except HubError:  # its hub is closed, or has died
            pass


def key(info: Any) -> str:
    return json.dumps(info, sort_keys=True)


class World:
    def __init__(self, proxy: FaultyProxy, prefix: str, tasks: TaskGroup) -> None:
        self._arguments = proxy, prefix, tasks
        self.nodes = [Node(*self._arguments) for _ in range(NODES)]

    async def begin(self) -> None:
        for node in self.nodes:
            await node.begin()
        for topic in TOPICS:
            await self.nodes[0].hub.publish(topic, "x")  # so that the pattern has something

    async def replace(self, number: int, *, dies: bool) -> None:
        node = self.nodes[number]
        if dies:
            die(node.hub)
        await node.hub.__aexit__(None, None, None)
        self.nodes[number] = Node(*self._arguments)
        await self.nodes[number].begin()

    def everybody(self) -> list[tuple[Node, tuple[Subscription, str, Any]]]:
        return [(node, each) for node in self.nodes for each in node.open]

    async def disconnect(self, number: int, topic: str) -> None:
        meant = [each for each in self.everybody() if each[1][1] in (topic, "room/*")]
        try:
            await self.nodes[number].hub.disconnect(topic)
        except HubError:  # the connection was cut
            await self.disconnect(number, topic)
            return
        with anyio.fail_after(SOON):
            # Whoever comes while the message is on its way may be meant too.
            token = self.nodes[number].messages()[-1]
            while not all(token in node.messages() for node in self.nodes):
                await anyio.sleep(0.001)
        assert all(each[0]._over for _, each in meant)
        for node, each in meant:
            node.open.remove(each)

    async def check(self) -> None:
        """All nodes know how it is, soon."""
        wrong: object = "nothing"
        with anyio.move_on_after(SOON):
            while (wrong := await self._wrong()) is not None:
                await anyio.sleep(0.02)
            return
        raise AssertionError(wrong)

    async def _wrong(self) -> object:
        for topic in TOPICS:
            there = [each for _, each in self.everybody() if each[1] in (topic, "room/*")]
            infos = {key(info) for _, _, info in there if info is not None}
            for number, node in enumerate(self.nodes):
                try:
                    count = await node.hub.count(topic)
                    present = list(map(key, await node.hub.presence(topic)))
                except HubError as exc:  # a connection was cut
                    return exc
                if (count, sorted(present)) != (len(there), sorted(infos)):
                    return number, topic, count, present, len(there), infos
                if node.told.get(topic) != infos:
                    return number, topic, "told", node.told.get(topic), infos
        return None

    async def do(self, what: str, *arguments: Any) -> None:
        if what == "come":
            await self.nodes[arguments[0]].come(*arguments[1:])
        elif what == "go":
            everybody = self.everybody()
            if arguments[0] < len(everybody):
                node, each = everybody[arguments[0]]
                node.open.remove(each)
                each[0].close()
        elif what in ("die", "close"):
            await self.replace(arguments[0], dies=what == "die")
        elif what == "cut":
            await anyio.to_thread.run_sync(self.nodes[arguments[0]].proxy.cut)
        elif what == "disconnect":
            await self.disconnect(*arguments)
        elif what == "wait":
            await anyio.sleep(*arguments)
        elif what == "check":
            await self.check()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.mark.timeout(300)
def test_presence_is_right_in_the_end(
    server: RedisServer,
    anyio_backend: str,
    new_prefix: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(presence, "HEARTBEAT", 0.25)
    monkeypatch.setattr(presence, "LEASE", 1.0)

    async def run(program: list[Any]) -> None:
        with FaultyProxy(server.port) as proxy:
            async with anyio.create_task_group() as tasks:
                world = World(proxy, new_prefix(), tasks)
                await world.begin()
                for what, *arguments in program:
                    if what == "flush":
                        keys = [
                            name
                            for name in server.command("KEYS", "*")
                            if ":presence:" in name or ":messages" in name
                        ]
                        if keys:
                            server.command("DEL", *keys)
                    else:
                        await world.do(what, *arguments)
                await world.check()
                for node in world.nodes:
                    await node.hub.__aexit__(None, None, None)
                tasks.cancel_scope.cancel()

    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],  # to shrink a failure takes minutes
    )
    @given(st.lists(events, min_size=10, max_size=30))
    def programs(program: list[Any]) -> None:
        anyio.run(run, program, backend=anyio_backend)

    programs()
