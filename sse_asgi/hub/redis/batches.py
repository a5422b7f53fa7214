"""Appends that wait at the same time share a round trip to Redis."""

from __future__ import annotations

import secrets
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
from coredis import RedisCluster
from coredis.exceptions import ResponseError

from ...errors import HubError
from .link import PASSING, refused
from .script import ARGUMENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..log import NewRecord
    from .keys import Keys, Top
    from .link import Call, Client, Link
    from .script import TopicScript

__all__ = ["Batches"]

#: The maximum number of events in a batch, and of bytes, unless a single append has more. It keeps
#: Redis busy for about 5 ms. Larger batches are not faster.
EVENTS, BYTES = 500, 2**20

#: How long a batch waits for the one before it, as a share of the timeout of the link. If Redis
#: does not answer, each append still has almost all of that time for attempts of its own.
WAIT = 1 / 50

#: Where the events of each topic are, or why Redis refused them.
_Replies: TypeAlias = "dict[str, list[Top] | HubError]"


class _Batch:
    """Appends that are sent together.

    :param until: until when it may wait for more.
    """

    __slots__ = ("_name", "bytes", "call", "events", "topics", "until")

    call: Call[_Replies]

    def __init__(self, until: float) -> None:
        self.until: float = until
        #: For each topic the arguments of ``topic.lua``.
        self.topics: dict[str, list[Any]] = {}
        self.events: int = 0
        self.bytes: int = 0
        self._name: str = secrets.token_hex(8)

    def has_room(self, events: int, size: int) -> bool:
        """Return whether an append still fits."""
        return self.events + events <= EVENTS and self.bytes + size <= BYTES

    def add(self, topic: str, records: Sequence[NewRecord], size: int) -> int:
        """Add an append, and return how many events of the topic come before it."""
        own = self.topics.get(topic)
        if own is None:
            own = self.topics[topic] = []
        before = len(own) // ARGUMENTS
        for body, key, collapse_key, final, runner in records:
            self.events += 1
            # Without a key it gets one of its own: after a retry it must be stored once.
            name = f"{self._name}{self.events}" if key is None else f":{key}"
            own += (body, name, collapse_key or "", "1" if final else "", runner or "")
        self.bytes += size
        return before


class Batches:
    """Collects appends while another round trip is under way, and sends them in the next one.

    In a cluster, the topics of each shard have their own batches.
    """

    def __init__(self, link: Link, script: TopicScript, keys: Keys) -> None:
        self._link = link
        self._script = script
        self._keys = keys
        # For each shard, or for None, which stands for all, the batch that has not been sent, and
        # what is set when the one that was sent last is done.
        self._open: dict[int | None, _Batch] = {}
        self._sent: dict[int | None, anyio.Event] = {}

    def clear(self) -> None:
        """Forget the batches of a link that has ended."""
        self._open.clear()
        self._sent.clear()

    async def append(self, topic: str, records: Sequence[NewRecord]) -> list[Top]:
        """Append events to a topic, next to each other, and return where they are.

        If the topic has ended, the offset of an event that it does not have is -1.
        """
        count, size = len(records), sum([len(record.body) for record in records])
        group = None if self._link.is_single else self._keys.shard(topic)
        now = monotonic()
        batch = self._open.get(group)
        if batch is None or now >= batch.until or not batch.has_room(count, size):
            batch = _Batch(now + WAIT * self._link.timeout)
            batch.call = self._link.start(partial(self._send, group, batch))
            self._open[group] = batch
        # In the same step of the event loop: it is not sent before.
        before = batch.add(topic, records, size)
        reply = (await batch.call.result())[topic]
        if isinstance(reply, HubError):
            raise reply.with_traceback(None)
        return reply[before : before + count]

    async def _send(self, group: int | None, batch: _Batch, client: Client) -> _Replies:
        """Send a batch, when the one before it is done. Nothing can be added to it any more."""
        if self._open.get(group) is batch:
            while (sent := self._sent.get(group)) is not None and monotonic() < batch.until:
                with anyio.move_on_after(batch.until - monotonic()):
                    await sent.wait()
            if self._open.get(group) is batch:
                del self._open[group]
        sent = self._sent[group] = anyio.Event()
        try:
            return await self._append(group, batch, client)
        finally:
            sent.set()
            if self._sent.get(group) is sent:
                del self._sent[group]

    async def _append(self, group: int | None, batch: _Batch, client: Client) -> _Replies:
        """Append what a batch has. If Redis refuses it, try each topic alone."""
        # The server may have been replaced by a cluster.
        if group is not None or not isinstance(client, RedisCluster):
            try:
                return {**await self._script.append(batch.topics, client)}
            except ResponseError as exc:
                if isinstance(exc, PASSING) or len(batch.topics) == 1:
                    raise
        replies: _Replies = {}
        for topic, arguments in batch.topics.items():
            try:
                replies |= await self._script.append({topic: arguments}, client)
            except ResponseError as exc:
                if isinstance(exc, PASSING):
                    raise
                replies[topic] = refused(exc)
        return replies
