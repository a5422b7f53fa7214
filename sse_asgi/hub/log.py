"""What a hub needs of the log that it stands on, and the one that is in memory."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol, TypeAlias

from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ..errors import EventTooLargeError
from ..loops import clock, current_loop
from .positions import Position, new_epoch

__all__ = [
    "Created",
    "Deliver",
    "Limits",
    "Log",
    "MemoryLog",
    "Page",
    "Record",
    "Renewed",
    "Window",
]


class Record:
    """An event in a log.

    :param epoch: the epoch of its log.
    :param offset: its place there.
    :param body: its frame without the id.
    :param collapse_key: for those who want only the newest event of each such key.
    """

    __slots__ = ("_frame", "body", "collapse_key", "epoch", "offset")

    def __init__(
        self, epoch: str, offset: int, body: bytes, collapse_key: str | None = None
    ) -> None:
        self.epoch: str = epoch
        self.offset: int = offset
        self.body: bytes = body
        self.collapse_key: str | None = collapse_key
        self._frame: bytes | None = None

    def __repr__(self) -> str:
        return f"<Record {self.position} {self.body!r:.60}>"

    @property
    def position(self) -> Position:
        """Where it is."""
        return Position(self.epoch, self.offset)

    @property
    def frame(self) -> bytes:
        """Its frame with its position as the id: made once, for all subscribers."""
        if self._frame is None:
            self._frame = b"id: %s-%d\n%s" % (self.epoch.encode(), self.offset, self.body)
        return self._frame


@dataclass(frozen=True)
class Page:
    """A part of a log, and how far that reaches: what :meth:`Log.read` returns."""

    epoch: str
    #: The offset of the oldest event that the log still has; one more than ``last`` if it has none.
    first: int
    #: The offset of the newest event that there has been; 0 if none.
    last: int
    records: Sequence[Record] = ()


@dataclass(frozen=True)
class Limits:
    """How much a log keeps of each topic."""

    max_events: int
    max_bytes: int
    #: In seconds.
    max_age: float = math.inf

    @classmethod
    def checked(cls, max_events: int, max_bytes: int, max_age: float | None) -> Limits:
        """The limits that somebody has asked for.

        :raises TypeError: one of a wrong type.
        :raises ValueError: one out of range.
        """
        for name, value in (("max_events", max_events), ("max_bytes", max_bytes)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, not {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if max_age is None:
            return cls(max_events, max_bytes)
        if not isinstance(max_age, (int, float)) or isinstance(max_age, bool):
            raise TypeError(f"max_age must be a number of seconds or None, not {max_age!r}")
        if not max_age > 0:
            raise ValueError(f"max_age must be a number of seconds > 0, not {max_age!r}")
        return cls(max_events, max_bytes, max_age)

    def check(self, body: bytes) -> None:
        """Refuse an event that is larger than all that may be kept.

        :raises EventTooLargeError: for such a one.
        """
        if len(body) > self.max_bytes:
            raise EventTooLargeError(
                f"an event of {len(body)} bytes, where max_bytes is {self.max_bytes}"
            )


#: What a log calls with new records of a topic, in order.
Deliver: TypeAlias = Callable[[str, Sequence[Record]], None]

#: What a log calls with a topic that was not there before.
Created: TypeAlias = Callable[[str], None]

#: What a log calls when a topic has begun a new epoch, with where that ends.
Renewed: TypeAlias = Callable[[str, Position], None]


class Log(Protocol):
    """Where a hub keeps its events: an append-only log for each topic.

    A topic is there from its first use. Its log has an epoch, which no other has, and offsets that
    begin with 1 and have no holes. Old events go when limits say so; a log that has lost newer ones
    begins a new epoch, so that no position ever gets a second meaning.

    All methods are called in one event loop. Those that are coroutine functions may be cancelled at
    any time: an ``append`` that was may have taken place or not, but never by half. They raise
    :class:`~sse_asgi.hub.HubError` where the log can't be reached, after a bounded time.

    :class:`sse_asgi.testing.LogContract` tests all of this.
    """

    @property
    def limits(self) -> Limits:
        """How much it keeps of each topic; a hub has no more of it at hand."""
        ...

    def attach(self, deliver: Deliver, created: Created, renewed: Renewed) -> None:
        """Have a hub told of new records, and of new epochs, of the topics that are followed, and
        of new topics.

        They are called in the event loop of the hub, and do not raise. Called once: a log belongs
        to one hub.
        """
        ...

    async def append(
        self, topic: str, body: bytes, *, key: str | None = None, collapse_key: str | None = None
    ) -> Position:
        """Append an event, at once and as a whole, with the next offset of the topic.

        :param key: of two appends to a topic with the same key only the first takes place, and both
            return its position, for as long as the log has that event.
        :raises EventTooLargeError: for one that is larger than all that the log may keep.
        """
        ...

    async def read(self, topic: str, after: int | None, max_bytes: int) -> Page:
        """Read the events after an offset, oldest first, without a hole.

        If the first of them is gone, begin with the oldest that there is. ``max_bytes`` bounds
        their bodies together, but one event is always returned if there is one.

        :param after: ``None``: no records, only how far the log reaches.
        """
        ...

    def position(self, topic: str) -> Position | None:
        """The newest position of a topic, if that is known without waiting."""
        ...

    def topics(self) -> Iterable[str] | None:
        """All topics; ``None`` until :meth:`follow_topics`, if that has to wait."""
        ...

    async def follow_topics(self) -> None:
        """From now on know all topics, and tell of new ones."""
        ...

    def follow(self, topic: str, after: Position) -> None:
        """From now on deliver all events of a topic after that position, in order."""
        ...

    def unfollow(self, topic: str) -> None:
        """Undo :meth:`follow`."""
        ...

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Do what has to be done as long as a hub is open; runs until it is cancelled.

        :param task_status: told when the log can be used.
        """
        ...


class Window:
    """The newest events of one topic, without a hole; old ones go when limits say so."""

    __slots__ = ("_begin", "_joined", "_records", "_times", "epoch", "last", "size")

    def __init__(self, epoch: str, last: int = 0) -> None:
        self.epoch: str = epoch
        self.last: int = last
        self.size: int = 0
        # The first ones may be gone: cut off from time to time, as that takes as long as the rest.
        self._records: list[Record] = []
        self._times: list[float] = []
        self._begin = 0
        self._joined: tuple[int, bytes, int] | None = None

    @property
    def first(self) -> int:
        """The offset of the oldest event, or of the next where there is none."""
        return self.last + 1 - len(self)

    def __len__(self) -> int:
        return len(self._records) - self._begin

    def append(self, record: Record, now: float) -> None:
        """Add the next event."""
        self._records.append(record)
        self._times.append(now)
        self.size += len(record.body)
        self.last = record.offset
        self._joined = None

    def after(self, offset: int, max_bytes: int) -> list[Record]:
        """The events after ``offset``, so many bytes of them, but at least one."""
        records = self._records
        begin = end = max(len(records) - (self.last - offset), self._begin)
        rest = max_bytes
        while end < len(records) and (rest >= len(records[end].body) or end == begin):
            rest -= len(records[end].body)
            end += 1
        return records[begin:end]

    def joined_after(self, offset: int, max_bytes: int) -> tuple[bytes, int]:
        """The frames of these events as one, and the offset of the last: joined once for all who
        ask for the same one after another.
        """
        if self._joined is None or self._joined[0] != offset:
            records = self.after(offset, max_bytes)
            frame = b"".join([record.frame for record in records])
            self._joined = (offset, frame, records[-1].offset)
        return self._joined[1:]

    def forget_joined(self) -> None:
        """Do not keep what :meth:`joined_after` has made."""
        self._joined = None

    def trim(self, limits: Limits, now: float) -> list[Record]:
        """Forget what is beyond the limits, and return it."""
        begin = end = self._begin
        records = self._records
        while end < len(records) and (
            len(records) - end > limits.max_events
            or self.size > limits.max_bytes
            or self._times[end] <= now - limits.max_age
        ):
            self.size -= len(records[end].body)
            end += 1
        if end == begin:
            return []
        gone = records[begin:end]
        self._begin = end
        if end > 32 and end > len(records) // 2:
            del records[:end], self._times[:end]
            self._begin = 0
        else:
            # They would be kept until they are cut off.
            records[begin:end] = [_GONE] * (end - begin)
        return gone


_GONE = Record("", 0, b"")

#: For how long, in seconds, a topic stays that has no event and is not used: a page that was made
#: with its position may still be on its way.
IDLE = 300.0


#: How much may be appended before others have a turn, as a share of what the log keeps: little, so
#: that no subscriber falls off that takes what it can; and for how many seconds.
BURST, TURN = 1 / 64, 0.005


class _Topic:
    __slots__ = ("followed", "keys", "used", "window")

    def __init__(self) -> None:
        self.window = Window(new_epoch())
        self.followed = False
        self.keys: dict[str, int] = {}  # of appends, and their offsets
        self.used = 0.0


class MemoryLog:
    """A log in the memory of this process.

    :param max_events: how many events of each topic are kept.
    :param max_bytes: how many bytes of them.
    :param max_age: for how many seconds; ``None``: without a limit.
    """

    def __init__(
        self,
        max_events: int = 1000,
        max_bytes: int = 1024 * 1024,
        max_age: float | None = None,
    ) -> None:
        self.limits: Limits = Limits.checked(max_events, max_bytes, max_age)
        # Those that were not used for longest come first.
        self._topics: OrderedDict[str, _Topic] = OrderedDict()
        self._burst = self._turned = 0.0
        self._loop: object = None
        self._clock: Callable[[], float] = float
        self._deliver: Deliver | None = None
        self._created: Created | None = None

    def attach(self, deliver: Deliver, created: Created, renewed: Renewed) -> None:
        """See :meth:`Log.attach`: no epoch ends before its topic does."""
        if self._deliver is not None:
            raise RuntimeError("this log belongs to another hub")
        self._deliver, self._created = deliver, created

    async def append(
        self, topic: str, body: bytes, *, key: str | None = None, collapse_key: str | None = None
    ) -> Position:
        """See :meth:`Log.append`."""
        self.limits.check(body)
        await self._give_way(len(body))
        kept = self._use(topic)
        window = kept.window
        if key is not None and (offset := kept.keys.get(key)) is not None:
            return Position(window.epoch, offset)
        record = Record(window.epoch, window.last + 1, body, collapse_key)
        window.append(record, kept.used)
        if key is not None:
            kept.keys[key] = record.offset
        self._trim(kept)
        if self._deliver is not None:
            self._deliver(topic, (record,))
        return record.position

    async def read(self, topic: str, after: int | None, max_bytes: int) -> Page:
        """See :meth:`Log.read`."""
        await checkpoint()
        window = self._use(topic).window
        records = () if after is None else window.after(after, max_bytes)
        return Page(window.epoch, window.first, window.last, records)

    def position(self, topic: str) -> Position:
        """See :meth:`Log.position`: it is always known."""
        window = self._use(topic).window
        return Position(window.epoch, window.last)

    def topics(self) -> Iterable[str]:
        """See :meth:`Log.topics`: they are always known."""
        return tuple(self._topics)

    async def follow_topics(self) -> None:
        """See :meth:`Log.follow_topics`: they are always followed."""

    def follow(self, topic: str, after: Position) -> None:
        """See :meth:`Log.follow`: new events are delivered anyway."""
        kept = self._use(topic)
        kept.followed = True
        window = kept.window
        if after.epoch == window.epoch and after.offset < window.last and self._deliver is not None:
            self._deliver(topic, window.after(after.offset, self.limits.max_bytes))

    def unfollow(self, topic: str) -> None:
        """See :meth:`Log.unfollow`."""
        if (kept := self._topics.get(topic)) is not None:
            kept.followed = False

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """See :meth:`Log.run`: there is nothing to be done."""
        task_status.started()

    async def _give_way(self, size: int) -> None:
        """Let others have a turn; but not at each of many events that are appended flat out, so
        that whoever waits for them gets all at once.
        """
        self._burst += 1 / self.limits.max_events + size / self.limits.max_bytes
        if self._burst < BURST and monotonic() - self._turned < TURN:
            await checkpoint_if_cancelled()
        else:
            await checkpoint()
            self._burst, self._turned = 0.0, monotonic()

    def _use(self, topic: str) -> _Topic:
        """The topic, which is there from now on, without what is too old."""
        now = self._now()
        kept = self._topics.get(topic)
        if kept is None:
            self._forget_idle(now)
            kept = self._topics[topic] = _Topic()
            kept.used = now
            if self._created is not None:
                self._created(topic)
        else:
            self._topics.move_to_end(topic)
            kept.used = now
            if self.limits.max_age < math.inf:
                self._trim(kept)
        return kept

    def _trim(self, kept: _Topic) -> None:
        kept.window.trim(self.limits, kept.used)
        first = kept.window.first
        while kept.keys and kept.keys[oldest := next(iter(kept.keys))] < first:
            del kept.keys[oldest]

    def _forget_idle(self, now: float) -> None:
        """Forget topics without events that nobody uses; a few at a time, so that it is cheap."""
        for topic, kept in tuple(itertools.islice(self._topics.items(), 4)):
            if kept.used > now - IDLE:
                break
            kept.window.trim(self.limits, now)
            if len(kept.window) or kept.followed:
                self._topics.move_to_end(topic)
            else:
                del self._topics[topic]

    def _now(self) -> float:
        loop = current_loop()
        if loop is not self._loop:  # the first, or one after another
            self._loop, self._clock = loop, clock(loop)
        return self._clock()
