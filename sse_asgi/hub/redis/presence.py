"""Presence on Redis: each node says who is there, and again and again that it lives."""

from __future__ import annotations

import math
import secrets
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from ...errors import HubClosedError, HubError
from .keys import Entry, parse_id
from .reader import newest_id
from .script import evaluate
from .shard import Followed, Shard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..presence_log import Changed, Found, Received
    from .keys import Keys
    from .link import Link
    from .reader import Entries, Stream

__all__ = ["RedisPresence"]

#: How often a node says that it lives, in seconds, and after how many seconds without that it is
#: taken to be dead. Two may be lost, or late, since Redis fails over or the node is very busy.
HEARTBEAT, LEASE = 5.0, 15.0

#: How long to wait for further changes, in seconds, before they are told together; and how many are
#: told in one call of the script, which takes about 5 ms.
GATHERING, BATCH = 0.02, 500

#: How long to wait after an error, in seconds.
RETRY = 0.5

#: How many messages are remembered, since they may come twice.
REMEMBERED = 1000


class Streams(Protocol):
    """What presence needs from the log: to have streams read."""

    def assign(self, shard: int, stream: Stream) -> None:
        """Have a stream read, until the client is lost."""
        ...

    def discard(self, stream: Stream) -> None:
        """Stop reading a stream."""
        ...


class RedisPresence:
    """See :class:`sse_asgi.hub.PresenceLog`.

    :param streams: the log.
    """

    def __init__(self, link: Link, keys: Keys, streams: Streams) -> None:
        self._link = link
        self._keys = keys
        self._streams = streams
        self._shards: dict[int, Shard] = {}
        self._changes: dict[int, _Changes] = {}
        self._messages = _Messages(self, keys.messages())
        #: The functions of the hub; ``None``: it keeps no presence.
        self.changed: Changed | None = None
        self._found: Found | None = None
        self._received: Received | None = None
        # When the hub was opened, and whether that place in the messages is looked for.
        self._opened_at = 0.0
        self._loads = False
        self._seen: OrderedDict[str, None] = OrderedDict()

    def attach(self, changed: Changed, found: Found, received: Received) -> None:
        """See :meth:`sse_asgi.hub.PresenceLog.attach`."""
        self.changed, self._found, self._received = changed, found, received

    # -- for the log -----------------------------------------------------------------------------

    def serve(self) -> None:
        """Begin, or go on with a new client."""
        if self.changed is None:
            return
        if self._messages.last:
            self._streams.assign(0, self._messages)
        elif not self._loads:
            self._loads = True
            self._link.tasks.start_soon(self._load_messages)
        for number, stream in self._changes.items():
            self._streams.assign(number, stream)
        for shard in self._shards.values():
            shard.event.set()  # Redis may have lost everything
            self._keep(shard)

    def begin(self) -> None:
        """Get all messages from now on: the hub is opened."""
        self._opened_at = anyio.current_time()
        self._loads = False

    def clear(self) -> None:
        """Forget everything: the hub is closed."""
        self._shards.clear()
        self._changes.clear()
        self._seen.clear()
        self._messages.last = ""

    async def _load_messages(self) -> None:
        """Find the place in the messages where the hub was opened, and read them from there."""
        while not self._messages.last:
            try:
                (now,) = await self._run((self._messages.key,), "time", "")
            except HubClosedError:
                return
            except HubError:
                await anyio.sleep(RETRY)
            else:
                opened_at = now - (anyio.current_time() - self._opened_at) * 1000
                self._messages.last = f"{math.ceil(opened_at)}-0"
        self._streams.assign(0, self._messages)

    # -- for the hub -----------------------------------------------------------------------------

    def set_subscribers(self, topic: str, count: int) -> None:
        """See :meth:`sse_asgi.hub.PresenceLog.set_subscribers`."""
        shard = self._shard(topic)
        shard.set_subscribers(topic, count)
        self._keep(shard)

    def set_present(self, topic: str, info: str, present: bool) -> None:
        """See :meth:`sse_asgi.hub.PresenceLog.set_present`."""
        shard = self._shard(topic)
        shard.set_present(topic, info, present)
        self._keep(shard)

    async def infos(self, topic: str) -> Sequence[str]:
        """See :meth:`sse_asgi.hub.PresenceLog.infos`."""
        # What this node has noted may be on its way to Redis.
        shard = self._asked(topic)
        reply = await self._call(shard, "read", topic, shard.node, "")
        own = shard.infos.get(topic, ())
        return tuple(dict.fromkeys((*own, *(text.decode() for text in reply[4:]))))

    async def subscribers(self, topic: str) -> int:
        """See :meth:`sse_asgi.hub.PresenceLog.subscribers`."""
        shard = self._asked(topic)
        (others,) = await self._call(shard, "total", topic, shard.node)
        return int(others) + shard.subscribers.get(topic, 0)

    def follow(self, topic: str) -> None:
        """See :meth:`sse_asgi.hub.PresenceLog.follow`."""
        shard = self._shard(topic)
        shard.followed[topic] = Followed()
        self.look(shard, topic)

    def unfollow(self, topic: str) -> None:
        """See :meth:`sse_asgi.hub.PresenceLog.unfollow`."""
        shard = self._shard(topic)
        shard.followed.pop(topic, None)
        shard.unclear.pop(topic, None)
        if not shard.followed and (stream := self._changes.pop(shard.number, None)) is not None:
            self._streams.discard(stream)
        shard.event.set()
        self._keep(shard)

    async def broadcast(self, message: str) -> None:
        """See :meth:`sse_asgi.hub.PresenceLog.broadcast`."""
        token = secrets.token_hex(8)
        await self._run((self._messages.key,), "broadcast", "", token, message)
        self.receive(token, message)

    async def leave(self, seconds: float) -> None:
        """See :meth:`sse_asgi.hub.PresenceLog.leave`."""
        async with anyio.create_task_group() as tasks:
            for shard in self._shards.values():
                tasks.start_soon(self._leave, shard, seconds)

    # -- a shard ---------------------------------------------------------------------------------

    def _shard(self, topic: str) -> Shard:
        number = self._keys.shard(topic)
        if (shard := self._shards.get(number)) is None:
            shard = self._shards[number] = Shard(number)
        return shard

    def _asked(self, topic: str) -> Shard:
        number = self._keys.shard(topic)
        return self._shards.get(number) or Shard(number)

    def _keep(self, shard: Shard) -> None:
        """Have a task keep a shard up to date."""
        if not shard.is_kept:
            with suppress(HubClosedError):  # `serve` does it later
                self._link.tasks.start_soon(self._run_shard, shard)
                shard.is_kept = True

    async def _run_shard(self, shard: Shard) -> None:
        """Keep a shard up to date, as long as it is used."""
        try:
            while shard.is_known or shard.is_used:
                shard.event = anyio.Event()
                try:
                    await self._sync(shard)
                    for topic in tuple(shard.unclear):
                        await self._find(shard, topic)
                except HubClosedError:
                    return
                except HubError:  # it has been tried for some time
                    await anyio.sleep(RETRY)
                else:
                    with anyio.move_on_after(HEARTBEAT):
                        await shard.event.wait()
                        await anyio.sleep(GATHERING)
        finally:
            shard.is_kept = False
            if not shard.is_used and self._shards.get(shard.number) is shard:
                del self._shards[shard.number]

    async def _sync(self, shard: Shard) -> None:
        """Say that the node lives, and what has changed."""
        async with shard.lock:
            more = True
            while more and (shard.is_known or shard.is_used):
                taken = shard.take(BATCH)
                arguments = shard.arguments(taken)
                is_new, goes = not shard.is_known, shard.is_over
                try:
                    known, more = await self._call(
                        shard, "sync", int(is_new), int(goes), *arguments
                    )
                except BaseException:
                    shard.put_back(taken)
                    raise
                shard.is_known = bool(known) and not goes
                if not known:
                    shard.begin_again()
                    self.look(shard, *shard.followed)
                more = more or shard.is_due

    async def _leave(self, shard: Shard, seconds: float) -> None:
        with suppress(HubError):
            if shard.is_known:
                await self._sync(shard)
                async with shard.lock:
                    await self._call(shard, "leave", math.ceil(seconds * 1000))
        shard.clear()

    async def _find(self, shard: Shard, topic: str) -> None:
        """Find out who is present in a topic that is followed."""
        followed, stream = shard.followed.get(topic), self._changes.get(shard.number)
        if followed is None:
            return
        known = stream.last if stream is not None and followed.complete else ""
        reply = await self._call(shard, "read", topic, "", known)
        if shard.followed.get(topic) is not followed:
            return
        if len(reply) > 1:
            newest, born, is_settled, _, *infos = reply
            followed.position = parse_id(newest.decode())
            followed.learn(born, bool(is_settled))
            if shard.number not in self._changes:
                stream = self._changes[shard.number] = _Changes(self, shard, newest.decode())
                self._streams.assign(shard.number, stream)
            if self._found is not None:
                self._found(topic, [text.decode() for text in infos], followed.complete)
        if followed.complete:
            shard.unclear.pop(topic, None)

    def look(self, shard: Shard, *topics: str) -> None:
        """Find out who is present in topics that are followed, soon."""
        shard.unclear.update(dict.fromkeys(topics))
        shard.event.set()
        self._keep(shard)

    def receive(self, token: str, message: str) -> None:
        """Pass a message to the hub, unless it has had it."""
        if token not in self._seen and self._received is not None:
            self._seen[token] = None
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
            self._received(message)

    # -- commands --------------------------------------------------------------------------------

    async def _call(self, shard: Shard, operation: str, *arguments: Any) -> list[Any]:
        keys = self._keys.presence(shard.number)
        return await self._run(keys, operation, shard.node, *arguments)

    async def _run(
        self, keys: tuple[str, ...], operation: str, node: str, *arguments: Any
    ) -> list[Any]:
        values = [operation, int(LEASE * 1000), node, *arguments]
        return await self._link.start(partial(evaluate, "presence.lua", keys, values)).result()

    async def newest(self, key: str) -> str:
        """Return the id of the newest entry of a stream."""
        return await self._link.start(partial(newest_id, key)).result()

    def key_of_changes(self, shard: Shard) -> str:
        """Return the key of the stream of those who come and go."""
        return self._keys.presence(shard.number)[-1]


class _Changes:
    """The stream of those who come and go in a shard."""

    lasts: bool = False

    def __init__(self, presence: RedisPresence, shard: Shard, last: str) -> None:
        self._presence = presence
        self._shard = shard
        self.key: str = presence.key_of_changes(shard)
        self.last: str = last

    def take(self, entries: Entries) -> None:
        """See :class:`Stream`."""
        before = parse_id(self.last)
        for text, values in entries:
            self.last, entry = text, parse_id(text)
            if entry != Entry(before.generation or entry.generation, before.offset + 1):
                self._look()  # some are missing
            before = entry
            topic, info = values[b"topic"].decode(), values[b"info"].decode()
            followed = self._shard.followed.get(topic)
            if followed is None or followed.position is None or entry <= followed.position:
                continue
            if self._presence.changed is not None:
                self._presence.changed(topic, info, values[b"kind"] == b"join")

    def _look(self) -> None:
        for followed in self._shard.followed.values():
            followed.complete = False
        self._presence.look(self._shard, *self._shard.followed)

    async def review(self) -> None:
        """See :class:`Stream`."""
        self._presence.look(self._shard, *self._shard.followed)


class _Messages:
    """The stream of messages for all nodes."""

    lasts: bool = False

    def __init__(self, presence: RedisPresence, key: str) -> None:
        self._presence = presence
        self.key: str = key
        self.last: str = ""  # not known yet

    def take(self, entries: Entries) -> None:
        """See :class:`Stream`."""
        for text, values in entries:
            self.last = text
            self._presence.receive(values[b"token"].decode(), values[b"message"].decode())

    async def review(self) -> None:
        """See :class:`Stream`."""
        if parse_id(await self._presence.newest(self.key)) < parse_id(self.last):
            self.last = "0-0"  # Redis has older data, and its clock may be behind
