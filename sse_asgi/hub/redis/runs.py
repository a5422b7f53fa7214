"""The leases of runners in Redis, and the end of those that are not renewed."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio

from ...errors import HubError, TopicEndedError, TopicRunningError
from .script import evaluate

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from .keys import Keys
    from .link import Client, Link
    from .script import TopicScript

__all__ = ["RedisRuns"]

#: For how many seconds a topic is a runner's, if it does not renew its lease.
LEASE = 15.0

#: How often it is looked for leases that have ended, while a lease lasts.
LOOKS = 5

#: The maximum number of topics that are ended, or renewed, in one step.
COUNT = 100


class RedisRuns:
    """The runs of a log on Redis.

    :param followed: the topics that are followed. Their runs are ended if the runner has died.
    """

    def __init__(
        self, link: Link, keys: Keys, script: TopicScript, followed: Collection[str]
    ) -> None:
        self._link = link
        self._keys = keys
        self._script = script
        self._followed = followed
        #: In seconds.
        self.lease: float = LEASE
        # Since when each part of Redis answers.
        self._answers_since: dict[int, float] = {}

    async def begin(self, topic: str, runner: str, last: bytes) -> None:
        """See :meth:`sse_asgi.hub.RunLog.begin_run`."""
        _, status = await self._link.start(partial(self._begin, topic, runner, last)).result()
        if status == -1:
            raise TopicEndedError(f"the topic {topic!r:.80} has ended")
        if status == -2:
            raise TopicRunningError(f"the topic {topic!r:.80} has a run")

    async def _begin(self, topic: str, runner: str, last: bytes, client: Client) -> list[int]:
        """Make a runner that of a topic, which ends if it has one that has died."""
        part = self._part(topic)
        arguments = (runner, self._milliseconds, last, int(self._can_tell(part)))
        reply = await self._script.run("run", topic, arguments, client)
        self._answers(part)  # and from now on it is watched
        return reply

    async def renew(self, runners: Mapping[str, str]) -> Collection[str]:
        """See :meth:`sse_asgi.hub.RunLog.renew_runs`."""
        groups: dict[int | None, list[str]] = {}
        for topic in runners:
            group = None if self._link.is_single else self._keys.shard(topic)
            groups.setdefault(group, []).append(topic)
        lost: list[str] = []
        # At the same time: shards that can't be reached must not hold up the others.
        async with anyio.create_task_group() as tasks:
            for topics in groups.values():
                part = {topic: runners[topic] for topic in topics}
                tasks.start_soon(self._renew_group, part, lost)
        return lost

    async def _renew_group(self, runners: Mapping[str, str], lost: list[str]) -> None:
        """Renew the leases of a shard, or of all. What fails now is renewed the next time."""
        topics = list(runners)
        with suppress(HubError):
            for begin in range(0, len(topics), COUNT):
                part = {
                    topic: (runners[topic], self._milliseconds)
                    for topic in topics[begin : begin + COUNT]
                }
                call = self._link.start(partial(self._script.run_several, "renew", part))
                replies = await call.result()
                lost += [topic for topic, (_, status) in replies.items() if not int(status)]

    async def watch(self) -> None:
        """End the topics that are followed and whose runner has died, again and again."""
        try:
            while True:
                await anyio.sleep(self.lease / LOOKS)
                parts = {self._part(topic) for topic in self._followed}
                # At the same time: shards that can't be reached must not hold up the others.
                async with anyio.create_task_group() as tasks:
                    for part in parts | self._answers_since.keys():
                        tasks.start_soon(self._look, part)
        finally:  # the client is lost
            self._answers_since.clear()

    async def _look(self, part: int) -> None:
        """End the topics of a part whose leases have ended, if they can be told from others."""
        shards = {self._keys.shard(topic) for topic in self._followed}
        if not self._link.is_single or not shards:
            shards = {part}
        try:
            for shard in shards:
                topics = await self._link.start(partial(self._ended, shard)).result()
                self._answers(part)
                for topic in topics if self._can_tell(part) else ():
                    await self._link.start(partial(self._script.run, "expire", topic, ())).result()
        except HubError:
            self._answers_since.pop(part, None)

    def _part(self, topic: str) -> int:
        """Return the part of Redis that has a topic: its shard, or 0 if all are on one server."""
        return 0 if self._link.is_single else self._keys.shard(topic)

    def _answers(self, part: int) -> None:
        """Note that a part of Redis answers."""
        self._answers_since.setdefault(part, anyio.current_time())

    def _can_tell(self, part: int) -> bool:
        """Return whether a runner whose lease has ended is dead.

        If its part of Redis was away, it had no time to renew it.
        """
        since = self._answers_since.get(part, math.inf)
        return anyio.current_time() - since >= self.lease

    async def _ended(self, shard: int, client: Client) -> list[str]:
        """Return the topics of a shard whose leases have ended."""
        found = await evaluate("runs.lua", (self._keys.runs(shard),), (COUNT,), client)
        return [topic.decode() for topic in found]

    @property
    def _milliseconds(self) -> int:
        return math.ceil(self.lease * 1000)
