"""The tests of the contract of presence, for the logs that keep it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from ..hub import PresenceLog
    from .follower import Follower

__all__ = ["PresenceContract", "PresenceFollower"]

#: Infos: JSON texts, one of which begins as another one, and topics.
A, AB, C = '"a"', '"ab"', '{"c":[1,"\\u00e4"]}'
ROOM, ROOMS = "room", "room:{\u00e4} 1"


class PresenceFollower:
    """Takes the place of a hub with presence, and records what its log tells it."""

    def __init__(self, log: PresenceLog) -> None:
        self.log: PresenceLog = log
        #: What is present in each topic that is followed, as far as it was told.
        self.present: dict[str, set[str]] = {}
        self.changes: list[tuple[str, str, bool]] = []
        self.received: list[str] = []
        log.attach(self._changed, self._found, self.received.append)

    def _changed(self, topic: str, info: str, present: bool) -> None:
        if topic in self.present and present != (info in self.present[topic]):
            self.changes.append((topic, info, present))
            (self.present[topic].add if present else self.present[topic].remove)(info)

    def _found(self, topic: str, infos: Sequence[str], complete: bool) -> None:
        if topic not in self.present:
            self.present[topic] = set(infos)
            return
        for info in infos:
            self._changed(topic, info, True)
        if complete:
            for info in self.present[topic] - set(infos):
                self._changed(topic, info, False)


class PresenceContract:
    """The part of :class:`LogContract` about presence. A log that does not keep it passes."""

    patience: float

    def _open(self) -> AbstractAsyncContextManager[list[Follower]]:
        raise NotImplementedError

    async def _until(self, condition: Callable[[], object], what: str) -> None:
        raise NotImplementedError

    @asynccontextmanager
    async def _presences(self) -> AsyncGenerator[list[PresenceFollower], None]:
        async with self._open() as followers:
            found = [getattr(follower.log, "presence", None) for follower in followers]
            yield [PresenceFollower(log) for log in found if log is not None]

    async def _is(
        self, nodes: Sequence[PresenceFollower], topic: str, count: int, *infos: str
    ) -> None:
        """Wait until all nodes know that it is so."""

        async def is_so() -> bool:
            for node in nodes:
                there = await node.log.infos(topic)
                if (await node.log.subscribers(topic), sorted(there)) != (count, sorted(infos)):
                    return False
            return True

        await self._soon(is_so, f"{topic} has not {count} subscribers with {infos}")

    async def _soon(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        with anyio.move_on_after(self.patience):
            while not await condition():
                await anyio.sleep(0.01)
            return
        raise AssertionError(what)

    async def test_presence_of_all_nodes(self) -> None:
        """Each info is there once, and the subscribers are added up."""
        async with self._presences() as nodes:
            for topic in (ROOM, ROOMS):
                for number, node in enumerate(nodes, 1):
                    node.log.set_subscribers(topic, number)
                    node.log.set_present(topic, A, True)
                    node.log.set_present(topic, A, True)
                total = sum(range(len(nodes) + 1))
                for node in nodes[:1]:
                    node.log.set_present(topic, AB, True)
                    node.log.set_present(topic, C, True)
                    await self._is(nodes, topic, total, A, AB, C)
                    node.log.set_present(topic, C, False)
                    node.log.set_present(topic, C, False)
                    node.log.set_subscribers(topic, 7)
                    await self._is(nodes, topic, total + 6, A, AB)
            for node in nodes:
                for topic in (ROOM, ROOMS, "other"):
                    node.log.set_subscribers(topic, 0)
                    for info in (A, AB, C):
                        node.log.set_present(topic, info, False)
            for topic in (ROOM, ROOMS, "other"):
                await self._is(nodes, topic, 0)

    async def test_what_a_node_has_noted_is_known_there_at_once(self) -> None:
        """A node need not wait for what it has said itself."""
        async with self._presences() as nodes:
            for node in nodes[:1]:
                for number in range(1, 20):
                    node.log.set_subscribers(ROOM, number)
                    node.log.set_present(ROOM, str(number), True)
                    node.log.set_present(ROOM, str(number - 1), False)
                    assert await node.log.subscribers(ROOM) == number
                    assert list(await node.log.infos(ROOM)) == [str(number)]

    async def test_those_who_come_and_go(self) -> None:
        """All nodes that follow a topic are told once, when the first comes and the last goes."""
        async with self._presences() as nodes:
            for node in nodes[:1]:
                node.log.set_present(ROOM, A, True)
                await self._is(nodes, ROOM, 0, A)
            for node in nodes:
                node.log.follow(ROOM)
            await self._until(
                lambda: all(node.present.get(ROOM) == {A} for node in nodes), "A is not found"
            )
            for node in nodes:
                node.log.set_present(ROOM, AB, True)
                node.log.set_present("other", C, True)
            for expected in ([(ROOM, AB, True)], [(ROOM, AB, True), (ROOM, AB, False)]):
                await self._until(
                    lambda all_=expected: all(len(node.changes) >= len(all_) for node in nodes),  # type: ignore[misc]
                    "a change is not told",
                )
                await self._is(nodes, ROOM, 0, *((A, AB) if len(expected) == 1 else (A,)))
                for node in nodes:
                    assert node.changes == expected
                    node.log.set_present(ROOM, AB, False)
            for node in nodes:
                node.log.unfollow(ROOM)
                node.log.unfollow(ROOM)
            for node in nodes[:1]:
                node.log.set_present(ROOM, A, False)
                await self._is(nodes, ROOM, 0)
            for node in nodes:
                assert node.changes == expected

    async def test_following_while_others_come(self) -> None:
        """Whenever following begins, nobody is missing, and nobody comes twice."""
        for steps in range(10):
            async with self._presences() as nodes:
                for reader in nodes[-1:]:
                    for number in range(10):
                        nodes[0].log.set_present(ROOM, str(number), True)
                        if number == 5:
                            reader.log.follow(ROOM)
                        for _ in range(steps):
                            await checkpoint()
                    expected = set(map(str, range(10)))
                    await self._until(
                        lambda reader=reader, all_=expected: reader.present.get(ROOM) == all_,  # type: ignore[misc]
                        "somebody is missing",
                    )
                    came = [info for _, info, _ in reader.changes]
                    assert len(came) == len(set(came))

    async def test_messages_reach_all_nodes_once(self) -> None:
        """Also the node that sends them, before it goes on."""
        async with self._presences() as nodes:
            texts = [f"{number} \u00e4\n\0" for number in range(10)]
            for text in texts:
                for node in nodes[:1]:
                    await node.log.broadcast(text)
                    assert node.received[-1] == text
            for node in nodes:
                await self._until(
                    lambda node=node: len(node.received) >= len(texts),  # type: ignore[misc]
                    "a message has not come",
                )
                assert node.received == texts

    async def test_a_node_that_leaves(self) -> None:
        """Its subscribers are gone, and its infos in a moment."""
        async with self._presences() as nodes:
            if len(nodes) < 2:
                return
            leaving, *others = nodes
            for node in others:
                node.log.follow(ROOM)
            for node in nodes:
                node.log.set_subscribers(ROOM, 1)
                node.log.set_present(ROOM, A, True)
            leaving.log.set_present(ROOM, C, True)
            await self._is(others, ROOM, len(nodes), A, C)
            leaving.log.set_subscribers(ROOM, 0)
            await leaving.log.leave(0.5)
            await self._is(others, ROOM, len(others), A)
            await self._until(
                lambda: all(node.changes[-1:] == [(ROOM, C, False)] for node in others),
                "it is not told that C has gone",
            )
