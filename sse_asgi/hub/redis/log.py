"""The hub's log on Redis Streams."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import anyio
from anyio import TASK_STATUS_IGNORED
from coredis import Redis, RedisCluster

from ...errors import HubClosedError, HubError, TopicEndedError, TopicRunningError
from ..log import Absence, Limits, NewRecord, Page, Record
from ..positions import Position
from .batches import Batches
from .keys import Keys, Top
from .link import Call, Link
from .places import RedisPlaces
from .presence import RedisPresence
from .reader import Reader
from .runs import RedisRuns
from .script import TopicScript
from .streams import NamesStream, TopicStream

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from anyio.abc import TaskGroup, TaskStatus

    from ..log import Created, Deliver, Renewed
    from ..remote_log import RoundTrip
    from .link import Client, Source
    from .reader import Stream

__all__ = ["RedisLog"]

#: How often it is looked for new topics that readers have not brought yet, at most, in seconds.
LOOK = 1.0

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
        self._followed: dict[str, TopicStream] = {}
        self.script: TopicScript = TopicScript(self._link, self.keys, self.limits, self._followed)
        self._runs = RedisRuns(self._link, self.keys, self.script, self._followed)
        self._batches = Batches(self._link, self.script, self.keys)
        self.presence: RedisPresence = RedisPresence(self._link, self.keys, self)
        self.places: RedisPlaces = RedisPlaces(self._link, self.keys)
        # The names of all topics, and the streams that have them, after `follow_topics`.
        self._names: dict[str, None] | None = None
        self._name_streams: dict[int, NamesStream] = {}
        self._naming = anyio.Lock()
        self._looked_at = -math.inf
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
        self,
        topic: str,
        body: bytes,
        *,
        key: str | None = None,
        collapse_key: str | None = None,
        final: bool = False,
    ) -> Position:
        """See :meth:`sse_asgi.hub.Log.append`."""
        record = NewRecord(body, key, collapse_key, final)
        (position,) = await self.append_many(topic, [record])
        return position

    async def append_many(self, topic: str, records: Sequence[NewRecord]) -> list[Position]:
        """See :meth:`sse_asgi.hub.BatchLog.append_many`."""
        for record in records:
            self.limits.check(record.body)
        if not records:
            return []
        tops = await self._batches.append(topic, records)
        lowest = min(top.offset for top in tops)
        if lowest == -1:
            raise TopicEndedError(f"the topic {topic!r:.80} has ended")
        if lowest == -2:
            raise TopicRunningError(f"the topic {topic!r:.80} does not have this run")
        return [self.keys.position(topic, top) for top in tops]

    @property
    def lease(self) -> float:
        """See :meth:`sse_asgi.hub.RunLog.lease`."""
        return self._runs.lease

    async def begin_run(self, topic: str, runner: str, last: bytes) -> None:
        """See :meth:`sse_asgi.hub.RunLog.begin_run`."""
        self.limits.check(last)
        await self._runs.begin(topic, runner, last)

    async def append_of_run(
        self, topic: str, body: bytes, *, runner: str, key: str | None = None, final: bool = False
    ) -> Position:
        """See :meth:`sse_asgi.hub.RunLog.append_of_run`."""
        record = NewRecord(body, key, None, final, runner)
        (position,) = await self.append_many(topic, [record])
        return position

    async def renew_runs(self, runners: Mapping[str, str]) -> Collection[str]:
        """See :meth:`sse_asgi.hub.RunLog.renew_runs`."""
        return await self._runs.renew(runners)

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

    def has_ended(self, topic: str) -> None:
        """See :meth:`sse_asgi.hub.Log.has_ended`. Never known: other processes append too."""
        return

    def topics(self) -> Iterable[str] | None:
        """See :meth:`sse_asgi.hub.Log.topics`."""
        return None if self._names is None else tuple(self._names)

    async def follow_topics(self) -> None:
        """See :meth:`sse_asgi.hub.Log.follow_topics`."""
        asked_at = anyio.current_time()
        async with self._naming:
            if self._names is not None:
                await self._look_for_topics(asked_at)
                return
            names: dict[str, None] = {}
            streams = [NamesStream(self, names, shard) for shard in range(self.keys.shards)]
            for stream in streams:
                await self.load(stream)
            self._names = names
            for shard, stream in enumerate(streams):
                self._name_streams[shard] = stream
                self.assign(shard, stream)

    async def _look_for_topics(self, asked_at: float) -> None:
        """Read the names that came until now, for all who have asked meanwhile, once a second."""
        if asked_at <= self._looked_at:
            return
        await anyio.sleep(max(0.0, self._looked_at + LOOK - anyio.current_time()))
        self._looked_at = anyio.current_time()
        for stream in tuple(self._name_streams.values()):
            await self.load(stream)

    def follow(self, topic: str, after: Position) -> None:
        """See :meth:`sse_asgi.hub.Log.follow`."""
        entry = self.keys.entry(after)
        if (followed := self._followed.get(topic)) is not None:
            followed.move(entry)
        else:
            followed = self._followed[topic] = TopicStream(self, topic, entry)
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
            self._batches.clear()
            self._names = None
            self._name_streams.clear()
            self.presence.clear()

    async def ping(self) -> None:
        """See :meth:`sse_asgi.hub.RemoteLog.ping`."""
        await self._link.ping()

    def observe(self, round_trip: RoundTrip) -> None:
        """See :meth:`sse_asgi.hub.RemoteLog.observe`."""
        self._link.round_trip = round_trip

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
            tasks.start_soon(self._runs.watch)
            tasks.start_soon(self.places.keep)
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
        generation, first, last, ended, *rest = await call.result()
        before_first, newest, at = (check.decode() for check in rest[:3])
        if generation:
            self.script.learn(topic, Top(generation, last, newest))
        epoch = self.keys.epoch(topic, generation)
        records = [
            Record(epoch, offset, body, key.decode() or None, check.decode(), bool(final))
            for offset, body, key, check, final in zip(*[iter(rest[3:])] * 5, strict=True)
        ]
        found = {first - 1: before_first, last: newest, last if after is None else after: at}
        checks = {offset: check for offset, check in found.items() if check or not offset}
        absence = self.absence(topic, generation // 1000 if generation else last)
        page = Page(epoch, first, last, records, checks, bool(ended), absence)
        if (followed := self._followed.get(topic)) is not None:
            followed.see(page)
        return page

    def absence(self, topic: str, until: int) -> Absence:
        """Return when a topic did not exist: a moment is a millisecond.

        :param until: when it was created, or when it was looked for.
        """
        # So long Redis keeps it at least: it was not there in between.
        kept = self.script.forget_after
        return Absence(self.keys.epoch(topic, 0), max(0, until + 1 - kept) if kept else 0, until)

    async def load(self, stream: NamesStream) -> None:
        """Read all names of a stream."""
        await self._link.start(stream.load).result()
