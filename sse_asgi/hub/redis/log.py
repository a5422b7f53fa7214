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
from .reader import Reader, decoded
from .script import TopicScript

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anyio.abc import TaskGroup, TaskStatus

    from ..log import Created, Deliver, Renewed
    from .link import Client, Source
    from .reader import Entries, Stream

__all__ = ["RedisLog"]

#: How many names of topics are read at once.
NAMES = 1000

#: What :meth:`RedisLog.read` is asked.
_Question: TypeAlias = tuple[str, "int | None", int]


class RedisLog:
    """A log on Redis Streams, for a hub in each of many processes.

    ::

        hub = Hub(RedisLog("redis://localhost"))

    Needs Redis 6.2 or newer, or Valkey. All hubs on one Redis with the same prefix are one: what is
    published at one reaches the subscribers of all, with the same id. A process holds one
    connection for its commands, and one on which it waits for events, whatever the number of its
    subscribers; another for each 100 topics, and in a cluster for each shard.

    Where Redis can't be reached, streams stay open and go on when it is back, without a loss or
    with a gap; publishing is tried again for ``timeout`` seconds, and fails with
    :class:`~sse_asgi.HubError`. An event is stored once, however often it was sent.

    :param source: a URL (``redis://``, ``rediss://`` for TLS, ``unix://``), of a single server or
        of a node of a cluster; or a client of coredis, or a function without arguments that makes
        one: for a Sentinel, ``lambda: sentinel.primary_for("name")``. A function is better than a
        client: after a failure it is asked for a new one.
    :param prefix: what the keys begin with.
    :param max_events: how many events of each topic are kept (1000). The limits should be the same
        in all processes: each keeps to its own.
    :param max_bytes: how many bytes of them (1 MiB).
    :param max_age: for how many seconds; ``None``: without a limit. With it, topics that nobody
        uses go from Redis; without, they stay until somebody deletes them.
    :param timeout: for how many seconds Redis is tried before a command fails (5).
    :param shards: into how many groups topics are divided (16). In a cluster, the topics of a group
        are on one node. It must be the same in all processes.
    :raises TypeError: a parameter of a wrong type.
    :raises ValueError: a parameter out of range.
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
        # The names of all topics, and their streams, if somebody wants to know.
        self._names: dict[str, None] | None = None
        self._name_streams: dict[int, _Names] = {}
        self._naming = anyio.Lock()
        # The client in use, and the tasks that end with it.
        self._session: tuple[Client, TaskGroup] | None = None
        self._readers: list[Reader] = []
        self._asked: dict[_Question, Call[Page]] = {}
        self._answers: dict[_Question, Call[Page]] = {}

    def __repr__(self) -> str:
        return f"<RedisLog {self.keys.prefix}>"

    # -- for a hub -------------------------------------------------------------------------------

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
        # A key of its own, where none is given: what was sent again is still stored once.
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
        """See :meth:`sse_asgi.hub.Log.position`: others append too, so nothing is known."""
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
                self._assign(shard, stream)

    def follow(self, topic: str, after: Position) -> None:
        """See :meth:`sse_asgi.hub.Log.follow`."""
        entry = self.keys.entry(after)
        if (followed := self._followed.get(topic)) is not None:
            followed.move(entry)
        else:
            followed = self._followed[topic] = _Topic(self, topic, entry)
            self._assign(self.keys.shard(topic), followed)

    def unfollow(self, topic: str) -> None:
        """See :meth:`sse_asgi.hub.Log.unfollow`."""
        if (followed := self._followed.pop(topic, None)) is not None:
            for reader in self._readers:
                reader.discard(followed)

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """See :meth:`sse_asgi.hub.Log.run`."""
        self._naming = anyio.Lock()  # of this event loop
        try:
            await self._link.run(self._serve, task_status)
        finally:
            # Another hub may be opened later, where everything may be different.
            self._followed.clear()
            self.script.clear()
            self._names = None
            self._name_streams.clear()

    # -- events as they come ---------------------------------------------------------------------

    async def _serve(self, client: Client, tasks: TaskGroup) -> None:
        """Read what is followed, with this client."""
        self._session = client, tasks
        self._readers = []
        try:
            for topic, followed in self._followed.items():
                self._assign(self.keys.shard(topic), followed)
            for shard, stream in self._name_streams.items():
                self._assign(shard, stream)
            await anyio.sleep_forever()
        finally:
            self._session = None
            self._readers = []

    def _assign(self, shard: int, stream: Stream) -> None:
        """Have a stream read, by a reader that has room."""
        if self._session is None:
            return  # later, by :meth:`_serve`
        client, tasks = self._session
        # One command reads streams of one slot only. Without a cluster there is one group.
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

    def deliver(self, topic: str, records: Sequence[Record]) -> None:
        """Pass new events on."""
        if self._deliver is not None:
            self._deliver(topic, records)

    def create(self, topic: str) -> None:
        """Pass on that there is a new topic."""
        if self._created is not None:
            self._created(topic)

    def renew(self, topic: str, position: Position) -> None:
        """Pass on that a topic has a new epoch."""
        if self._renewed is not None:
            self._renewed(topic, position)

    # -- commands --------------------------------------------------------------------------------

    async def _answer(self, question: _Question, answer: Call[Page]) -> None:
        """Answer all who ask the same: who asks while an answer is under way shares the next."""
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
        """See which names there are."""
        await self._link.start(stream.load).result()


class _Topic:
    """A topic that is followed."""

    def __init__(self, log: RedisLog, topic: str, entry: Entry) -> None:
        self._log = log
        self._topic = topic
        self.key: str = log.keys.log(topic)
        self.lasts: bool = True
        self.move(entry)

    def move(self, entry: Entry) -> None:
        """Go on after an entry."""
        self.entry: Entry = entry
        self.last: str = str(entry)  # at each read this is asked of all

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
        """Know where the topic ends. Of a new epoch nobody else may tell, if nothing new comes."""
        if last.generation > self.entry.generation:
            self.move(last)
            position = self._log.keys.position(self._topic, last)
            self._log.renew(self._topic, position)

    async def review(self) -> None:
        """See :class:`Stream`."""
        await self._log.read(self._topic, None, 0)


class _Names:
    """The names of the topics of a shard."""

    def __init__(self, log: RedisLog, names: dict[str, None], shard: int) -> None:
        self._log = log
        self._names = names
        # Where each is in the stream, the oldest first.
        self._entries: dict[str, Entry] = {}
        self.key: str = log.keys.topics(shard)
        self.lasts: bool = False
        self.last: str = "0-0"

    async def load(self, client: Client) -> None:
        """Read all that there are, and forget those that are there no more."""
        before = list(self._entries.items())
        with client.decoding(False):
            oldest = decoded(await client.xrange(self.key, count=1))
            newest = decoded(await client.xrevrange(self.key, count=1))
            if not newest or parse_id(newest[0][0]) < parse_id(self.last):
                self.last = "0-0"  # Redis has older data, and perhaps a clock that is behind
            while page := await client.xrange(self.key, start=f"({self.last}", count=NAMES):
                self.take(decoded(page))
        for name, entry in before:
            if oldest and entry >= parse_id(oldest[0][0]):
                break
            if self._entries.get(name) == entry:  # it has not gone to the end of the stream
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
