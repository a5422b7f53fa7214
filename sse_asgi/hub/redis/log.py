"""The hub's log on Redis Streams."""

from __future__ import annotations

import math
import secrets
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import anyio
from anyio import TASK_STATUS_IGNORED
from coredis import Redis, RedisCluster

from ...errors import HubClosedError, HubError
from ..log import Limits, Page, Record
from ..positions import Position
from .keys import Entry, Keys, Top, parse_id
from .link import Call, Link
from .presence import RedisPresence
from .reader import Reader, decoded
from .script import TopicScript

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anyio.abc import TaskGroup, TaskStatus

    from ..log import Created, Deliver, Renewed
    from .link import Client, Source
    from .reader import Entries, Stream

__all__ = ["RedisLog"]

#: The maximum number of names of topics in one read.
NAMES = 1000

#: The arguments of :meth:`RedisLog.read`.
_Question: TypeAlias = tuple[str, "int | None", int]


class RedisLog:
    """A log on Redis Streams, for a hub in each of many processes.

    ::

        hub = Hub(RedisLog("redis://localhost"))

    It needs Redis 6.2 or newer, or Valkey. All hubs on one Redis with the same prefix form one hub:
    an event that is published at one reaches the subscribers of all, with the same id. A process
    uses one connection for its commands, and one to wait for events, whatever the number of its
    subscribers. It uses another one for each 100 topics, and in a cluster for each shard.

    While Redis can't be reached, streams stay open. When it is back they go on, without a loss or
    with a gap event. Publishing is retried for ``timeout`` seconds, and then raises
    :class:`~sse_asgi.HubError`. However often an event was sent to Redis, it is stored once.

    :param source: a URL (``redis://``, ``rediss://`` for TLS, ``unix://``) of a single server or of
        a node of a cluster; or a client of coredis; or a function without arguments that makes one,
        for example for a Sentinel: ``lambda: sentinel.primary_for("name")``. A function is better
        than a client, because it is called again after a failure.
    :param prefix: the beginning of all keys.
    :param max_events: how many events of each topic are kept (1000). The limits should be the same
        in all processes, because each process applies its own.
    :param max_bytes: how many bytes of them (1 MiB).
    :param max_age: for how many seconds they are kept; ``None``: without a limit. With a limit,
        Redis deletes topics that are not used. Without, they stay until you delete them.
    :param timeout: for how many seconds a command is tried before it fails (5).
    :param shards: into how many shards the topics are divided (16). In a cluster, all topics of a
        shard are on one node. It must be the same in all processes.
    :raises TypeError: a parameter has a wrong type.
    :raises ValueError: a parameter is out of range.
    """

    def __init__(
        self,
        source: Source,
        *,
        prefix: str = "sse_asgi",
        max_events: int = 1000,
        max_bytes: int = 1024 * 1024,
        max_age: float | None = None,
        timeout: float = 5.0,
        shards: int = 16,
    ) -> None:
        self.limits: Limits = Limits.checked(max_events, max_bytes, max_age)
        if not (isinstance(source, (str, Redis, RedisCluster)) or callable(source)):
            name = type(source).__name__  # the value may have a password
            raise TypeError(f"a URL, a client of coredis or a function that makes one, not {name}")
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a str, not {prefix!r}")
        if not prefix or "{" in prefix or "}" in prefix:
            raise ValueError(f"prefix must not be empty or contain braces: {prefix!r}")
        if not isinstance(timeout, (int, float)) or isinstance(timeout, bool):
            raise TypeError(f"timeout must be a number of seconds, not {timeout!r}")
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be a number of seconds > 0, not {timeout!r}")
        if not isinstance(shards, int) or isinstance(shards, bool):
            raise TypeError(f"shards must be an int, not {shards!r}")
        if not 1 <= shards <= 16384:
            raise ValueError(f"shards must be from 1 to 16384, not {shards}")
        self.keys: Keys = Keys(prefix, shards)
        self._link = Link(source, timeout)
        self._deliver: Deliver | None = None
        self._created: Created | None = None
        self._renewed: Renewed | None = None
        self._followed: dict[str, _Topic] = {}
        self.script: TopicScript = TopicScript(self._link, self.keys, self.limits, self._followed)
        self.presence: RedisPresence = RedisPresence(self._link, self.keys, self)
        # The names of all topics, and the streams that have them, after `follow_topics`.
        self._names: dict[str, None] | None = None
        self._name_streams: dict[int, _Names] = {}
        self._naming = anyio.Lock()
        # The client, and the task group that is cancelled when it is lost.
        self._session: tuple[Client, TaskGroup] | None = None
        self._readers: list[Reader] = []
        self._asked: dict[_Question, Call[Page]] = {}
        self._answers: dict[_Question, Call[Page]] = {}

    def __repr__(self) -> str:
        return f"<RedisLog {self.keys.prefix}>"

    # -- for the hub -----------------------------------------------------------------------------

    def attach(self, deliver: Deliver, created: Created, renewed: Renewed) -> None:
        """See :meth:`sse_asgi.hub.Log.attach`."""
        if self._deliver is not None:
            raise RuntimeError("this log belongs to another hub")
        self._deliver, self._created, self._renewed = deliver, created, renewed

    async def append(
        self, topic: str, body: bytes, *, key: str | None = None, collapse_key: str | None = None
    ) -> Position:
        """See :meth:`sse_asgi.hub.Log.append`."""
        self.limits.check(body)
        # Without a key it gets one of its own: after a retry it must be stored once.
        name = secrets.token_hex(8) if key is None else f":{key}"
        arguments = (body, name, collapse_key or "")
        entry = Entry(
            *await self._link.start(partial(self.script.run, "append", topic, arguments)).result()
        )
        self.script.learn(topic, Top(*entry, name))
        return self.keys.position(topic, entry)

    async def read(self, topic: str, after: int | None, max_bytes: int) -> Page:
        """See :meth:`sse_asgi.hub.Log.read`."""
        question = (topic, after, max_bytes)
        tasks = self._link.tasks
        answer = self._asked.get(question)
        if answer is None:
            answer = self._asked[question] = Call()
            tasks.start_soon(self._answer, question, answer)
        return await answer.result()

    def position(self, topic: str) -> None:
        """See :meth:`sse_asgi.hub.Log.position`. Never known: other processes append too."""
        return

    def topics(self) -> Iterable[str] | None:
        """See :meth:`sse_asgi.hub.Log.topics`."""
        return None if self._names is None else tuple(self._names)

    async def follow_topics(self) -> None:
        """See :meth:`sse_asgi.hub.Log.follow_topics`."""
        async with self._naming:
            if self._names is not None:
                return
            names: dict[str, None] = {}
            streams = [_Names(self, names, shard) for shard in range(self.keys.shards)]
            for stream in streams:
                await self.load(stream)
            self._names = names
            for shard, stream in enumerate(streams):
                self._name_streams[shard] = stream
                self.assign(shard, stream)

    def follow(self, topic: str, after: Position) -> None:
        """See :meth:`sse_asgi.hub.Log.follow`."""
        entry = self.keys.entry(after)
        if (followed := self._followed.get(topic)) is not None:
            followed.move(entry)
        else:
            followed = self._followed[topic] = _Topic(self, topic, entry)
            self.assign(self.keys.shard(topic), followed)

    def unfollow(self, topic: str) -> None:
        """See :meth:`sse_asgi.hub.Log.unfollow`."""
        if (followed := self._followed.pop(topic, None)) is not None:
            self.discard(followed)

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """See :meth:`sse_asgi.hub.Log.run`."""
        self._naming = anyio.Lock()  # of this event loop
        self.presence.begin()
        try:
            await self._link.run(self._serve, task_status)
        finally:
            # The hub may be opened again later, and then everything may have changed.
            self._followed.clear()
            self.script.clear()
            self._names = None
            self._name_streams.clear()
            self.presence.clear()

    # -- new events ------------------------------------------------------------------------------

    async def _serve(self, client: Client, tasks: TaskGroup) -> None:
        """Read all streams that are followed, with a client, until it is lost."""
        self._session = client, tasks
        self._readers = []
        try:
            for topic, followed in self._followed.items():
                self.assign(self.keys.shard(topic), followed)
            for shard, stream in self._name_streams.items():
                self.assign(shard, stream)
            self.presence.serve()
            await anyio.sleep_forever()
        finally:
            self._session = None
            self._readers = []

    def assign(self, shard: int, stream: Stream) -> None:
        """Give a stream to a reader that has room."""
        if self._session is None:
            return  # `_serve` does it later
        client, tasks = self._session
        # In a cluster one command can read streams of one slot only.
        group = shard if isinstance(client, RedisCluster) else 0
        for reader in self._readers:
            if reader.group == group and not reader.is_full:
                break
        else:
            reader = Reader(self._link, group, self.keys.bell(group))
            self._readers.append(reader)
        reader.add(stream)
        if not reader.runs:
            reader.runs = True
            tasks.start_soon(reader.run, client)

    def discard(self, stream: Stream) -> None:
        """Stop reading a stream."""
        for reader in self._readers:
            reader.discard(stream)

    def deliver(self, topic: str, records: Sequence[Record]) -> None:
        """Pass new records of a topic to the hub."""
        if self._deliver is not None:
            self._deliver(topic, records)

    def create(self, topic: str) -> None:
        """Tell the hub that there is a new topic."""
        if self._created is not None:
            self._created(topic)

    def renew(self, topic: str, position: Position) -> None:
        """Tell the hub that a topic has begun a new epoch."""
        if self._renewed is not None:
            self._renewed(topic, position)

    # -- commands --------------------------------------------------------------------------------

    async def _answer(self, question: _Question, answer: Call[Page]) -> None:
        """Read a page for all callers that ask for the same one.

        A caller that asks while one is being read waits for the next: the page that is being read
        may be older than its question.
        """
        try:
            if (before := self._answers.get(question)) is not None:
                await before.done.wait()
            del self._asked[question]
            self._answers[question] = answer
            answer.succeed(await self._ask(*question))
        except HubError as exc:
            answer.fail(exc)
        finally:
            for calls in (self._asked, self._answers):
                if calls.get(question) is answer:
                    del calls[question]
            answer.fail(HubClosedError("the hub was closed"))

    async def _ask(self, topic: str, after: int | None, max_bytes: int) -> Page:
        """Read a page from Redis."""
        arguments = ("" if after is None else after, max_bytes)
        call = self._link.start(partial(self.script.run, "read", topic, arguments))
        generation, first, last, key, *values = await call.result()
        self.script.learn(topic, Top(generation, last, key.decode()))
        if (followed := self._followed.get(topic)) is not None:
            followed.see(Entry(generation, last))
        epoch = self.keys.epoch(topic, generation)
        records = [
            Record(epoch, values[i], values[i + 1], values[i + 2].decode() or None)
            for i in range(0, len(values), 3)
        ]
        return Page(epoch, first, last, records)

    async def load(self, stream: _Names) -> None:
        """Read all names of a stream."""
        await self._link.start(stream.load).result()


class _Topic:
    """The stream of a topic that is followed."""

    def __init__(self, log: RedisLog, topic: str, entry: Entry) -> None:
        self._log = log
        self._topic = topic
        self.key: str = log.keys.log(topic)
        self.lasts: bool = True
        self.move(entry)

    def move(self, entry: Entry) -> None:
        """Move behind an entry."""
        self.entry: Entry = entry
        self.last: str = str(entry)  # each read needs it

    def take(self, entries: Entries) -> None:
        """See :class:`Stream`."""
        records: list[Record] = []
        newest, key = self.entry, ""
        for text, values in entries:
            entry = parse_id(text)
            if entry > newest:
                newest = entry
                key = values[b"key"].decode()
                epoch = self._log.keys.epoch(self._topic, entry.generation)
                collapse_key = values[b"collapse_key"].decode() or None
                records.append(Record(epoch, entry.offset, values[b"body"], collapse_key))
        if records:
            self.move(newest)
            self._log.script.learn(self._topic, Top(*newest, key))
            self._log.deliver(self._topic, records)

    def see(self, last: Entry) -> None:
        """Move to the end of the topic if it has begun a new epoch.

        No entry tells of a new epoch until the first event of it comes.
        """
        if last.generation > self.entry.generation:
            self.move(last)
            position = self._log.keys.position(self._topic, last)
            self._log.renew(self._topic, position)

    async def review(self) -> None:
        """See :class:`Stream`."""
        await self._log.read(self._topic, None, 0)


class _Names:
    """The stream with the names of the topics of a shard."""

    def __init__(self, log: RedisLog, names: dict[str, None], shard: int) -> None:
        self._log = log
        self._names = names
        # The entry of each name in the stream, oldest first.
        self._entries: dict[str, Entry] = {}
        self.key: str = log.keys.topics(shard)
        self.lasts: bool = False
        self.last: str = "0-0"

    async def load(self, client: Client) -> None:
        """Read all names, and remove those that the stream no longer has."""
        before = list(self._entries.items())
        with client.decoding(False):
            oldest = decoded(await client.xrange(self.key, count=1))
            newest = decoded(await client.xrevrange(self.key, count=1))
            if not newest or parse_id(newest[0][0]) < parse_id(self.last):
                self.last = "0-0"  # Redis has older data, and its clock may be behind
            while page := await client.xrange(self.key, start=f"({self.last}", count=NAMES):
                self.take(decoded(page))
        for name, entry in before:
            if oldest and entry >= parse_id(oldest[0][0]):
                break
            if self._entries.get(name) == entry:  # it has not moved to the end of the stream
                del self._entries[name], self._names[name]

    def take(self, entries: Entries) -> None:
        """See :class:`Stream`."""
        for text, values in entries:
            self.last = text
            name = values[b"topic"].decode()
            self._entries.pop(name, None)
            self._entries[name] = parse_id(text)
            if name not in self._names:
                self._names[name] = None
                self._log.create(name)

    async def review(self) -> None:
        """See :class:`Stream`."""
        await self._log.load(self)
