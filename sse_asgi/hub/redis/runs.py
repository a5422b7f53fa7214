"""The leases of runners in Redis, and the end of those that are not renewed."""

from __future__ import annotations

import math
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
        # Whether runners had the time to renew their leases since Redis was away.
        self._can_tell = False

    async def begin(self, topic: str, runner: str, last: bytes) -> None:
        """See :meth:`sse_asgi.hub.RunLog.begin_run`."""
        _, status = await self._link.start(partial(self._begin, topic, runner, last)).result()
        if status == -1:
            raise TopicEndedError(f"the topic {topic!r:.80} has ended")
        if status == -2:
            raise TopicRunningError(f"the topic {topic!r:.80} has a run")

    async def _begin(self, topic: str, runner: str, last: bytes, client: Client) -> list[int]:
        """Make a runner that of a topic, which ends if it has one that has died."""
        arguments = (runner, self._milliseconds, last, int(self._can_tell))
        return await self._script.run("run", topic, arguments, client)

    async def renew(self, runners: Mapping[str, str]) -> Collection[str]:
        """See :meth:`sse_asgi.hub.RunLog.renew_runs`."""
        groups: dict[int | None, list[str]] = {}
        for topic in runners:
            group = None if self._link.is_single else self._keys.shard(topic)
            groups.setdefault(group, []).append(topic)
        lost: list[str] = []
        for topics in groups.values():
            for begin in range(0, len(topics), COUNT):
                part = {
                    topic: (runners[topic], self._milliseconds)
                    for topic in topics[begin : begin + COUNT]
                }
                call = self._link.start(partial(self._script.run_several, "renew", part))
                replies = await call.result()
                lost += [topic for topic, (_, status) in replies.items() if not int(status)]
        return lost

    async def watch(self) -> None:
        """End the topics that are followed and whose runner has died, again and again.

        The first time is later than a lease. If Redis was away, each runner may renew it first.
        """
        while True:
            await anyio.sleep(self.lease)
            self._can_tell = True
            try:
                while True:
                    # It asks for a shard even if none is followed, to see when Redis is away.
                    for shard in {*map(self._keys.shard, self._followed)} or {0}:
                        await self._end_shard(shard)
                    await anyio.sleep(self.lease / LOOKS)
            except HubError:
                continue
            finally:
                self._can_tell = False

    async def _end_shard(self, shard: int) -> None:
        """End the topics of a shard whose leases have ended."""
        topics = await self._link.start(partial(self._ended, shard)).result()
        for topic in topics:
            await self._link.start(partial(self._script.run, "expire", topic, ())).result()

    async def _ended(self, shard: int, client: Client) -> list[str]:
        """Return the topics of a shard whose leases have ended."""
        found = await evaluate("runs.lua", (self._keys.runs(shard),), (COUNT,), client)
        return [topic.decode() for topic in found]

    @property
    def _milliseconds(self) -> int:
        return math.ceil(self.lease * 1000)
