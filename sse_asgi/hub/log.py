"""The contract of logs: what a hub needs from the log that keeps its events."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeAlias

from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from ..errors import EventTooLargeError
from .positions import Position, text_of

__all__ = [
    "IDLE", "NO_CHECKS", "TIME_SLICE", "Absence", "BatchLog", "Created", "Deliver", "Limits",
    "Log", "NewRecord", "Page", "Record", "Renewed", "newest_of_each",
]  # fmt: skip

#: For how long, in seconds, a log keeps a topic that has no events and is not used. A client may
#: still hold a web page that was made with its position, and may subscribe with it.
IDLE = 300.0

#: For how many seconds the hub may keep the event loop to itself before it lets other tasks run.
TIME_SLICE = 0.005


#: The checks of a log that has none.
NO_CHECKS: Mapping[int, str] = MappingProxyType({})


class Record:
    """An event in a log.

    :param epoch: the epoch of the log.
    :param offset: the offset of the event in that epoch.
    :param body: the frame of the event, without the id.
    :param collapse_key: subscribers with the policy ``"latest"`` need only the newest event of each
        such key.
    :param check: the check of its position, if the log has checks.
    :param final: whether the topic has ended with this event.
    """

    __slots__ = ("_frame", "body", "check", "collapse_key", "epoch", "final", "offset")

    def __init__(
        self,
        epoch: str,
        offset: int,
        body: bytes,
        collapse_key: str | None = None,
        check: str = "",
        final: bool = False,
    ) -> None:
        self.epoch: str = epoch
        self.offset: int = offset
        self.body: bytes = body
        self.collapse_key: str | None = collapse_key
        self.check: str = check
        self.final: bool = final
        self._frame: bytes | None = None

    def __repr__(self) -> str:
        return f"<Record {self.position} {self.body!r:.60}>"

    @property
    def position(self) -> Position:
        """The position of the event."""
        return Position(self.epoch, self.offset, self.check)

    @property
    def frame(self) -> bytes:
        """The frame of the event, with its position as the id. All subscribers share it."""
        if self._frame is None:
            place = text_of(self.epoch, self.offset, self.check)
            self._frame = b"id: %s\n%s" % (place.encode(), self.body)
        return self._frame


def newest_of_each(records: Sequence[Record]) -> list[Record]:
    """Return the newest record of each collapse key, and all records without one."""
    newest = {record.collapse_key: record for record in records}
    return [
        record
        for record in records
        if record.collapse_key is None or newest[record.collapse_key] is record
    ]


class Absence(NamedTuple):
    """A time in which a topic did not exist, up to its creation or until now.

    A position in it has the offset of a moment: any number that grows with time. Before that moment
    is nothing that could be missed, and after it comes the first event of the topic.
    """

    #: The epoch of these positions: always the same for a topic, and of no other topic.
    epoch: str
    #: The first moment for which it is certain that the topic has not existed from then on.
    since: int
    #: The last moment.
    until: int

    def covers(self, position: Position) -> bool:
        """Return whether a position is in this absence.

        :param position: a position of the topic.
        """
        return position.epoch == self.epoch and self.since <= position.offset <= self.until


@dataclass(frozen=True)
class Page:
    """What :meth:`Log.read` returns: some events of a topic, and how far its log reaches."""

    #: The epoch of the log.
    epoch: str
    #: The offset of the oldest event that the log has; ``last + 1`` if it has none.
    first: int
    #: The offset of the newest event that the log has ever had; 0 if it has had none.
    last: int
    #: The events, oldest first.
    records: Sequence[Record] = ()
    #: The checks of some events, by their offsets, as far as the log knows them: of the newest
    #: event, of the event that was asked for as ``after``, and of the event before the oldest one.
    #: One that is missing here is not known. That does not mean that it is the same.
    checks: Mapping[int, str] = field(default_factory=lambda: NO_CHECKS)
    #: Whether the topic has ended: the newest event was the final one.
    ended: bool = False
    #: When the topic did not exist before. If it does not exist now, the epoch is that of the
    #: absence, ``last`` is the moment of the page, and there is no event. ``None``: not known, or
    #: reading a topic creates it.
    absence: Absence | None = None

    @property
    def absent(self) -> bool:
        """Whether the topic does not exist."""
        return self.absence is not None and self.absence.epoch == self.epoch

    def begins_after(self, position: Position) -> bool:
        """Return whether the topic did not exist at a position, nor until its first event.

        :param position: a position of the topic.
        """
        return self.absence is not None and self.absence.covers(position)

    @property
    def beginning(self) -> Position:
        """The position before the first event of the topic."""
        return self.end if self.absent else Position(self.epoch, 0)

    @property
    def end(self) -> Position:
        """The position of the newest event."""
        return Position(self.epoch, self.last, self.checks.get(self.last, ""))


@dataclass(frozen=True)
class Limits:
    """How many events a log keeps of each topic."""

    #: How many events.
    max_events: int
    #: How many bytes, counting the bodies of the events.
    max_bytes: int
    #: For how many seconds; ``math.inf``: without a limit.
    max_age: float = math.inf

    @classmethod
    def checked(cls, max_events: int, max_bytes: int, max_age: float | None) -> Limits:
        """Return these limits, after checking them.

        :param max_events: how many events of a topic are kept.
        :param max_bytes: the size of their bodies together.
        :param max_age: in seconds; ``None``: without a limit.
        :raises TypeError: a limit has a wrong type.
        :raises ValueError: a limit is out of range.
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
        """Refuse an event whose body is larger than ``max_bytes``.

        :param body: the frame of the event, without the id.
        :raises EventTooLargeError: it is larger.
        """
        if len(body) > self.max_bytes:
            raise EventTooLargeError(
                f"an event of {len(body)} bytes, where max_bytes is {self.max_bytes}"
            )


class NewRecord(NamedTuple):
    """An event to be appended, with what :meth:`Log.append` is given."""

    #: The frame of the event, without the id.
    body: bytes
    #: Of several events of the topic with the same key, one is appended.
    key: str | None = None
    #: The collapse key.
    collapse_key: str | None = None
    #: Whether the topic ends with this event.
    final: bool = False
    #: The runner that appends it: see :meth:`RunLog.append_of_run`. ``None``: anybody.
    runner: str | None = None


#: Called by a log with new records of a topic, in order.
Deliver: TypeAlias = Callable[[str, Sequence[Record]], None]

#: Called by a log with a topic that was not there before.
Created: TypeAlias = Callable[[str], None]

#: What a log calls when a topic has begun a new epoch, with where that ends; or with a later moment
#: in which the topic still did not exist.
Renewed: TypeAlias = Callable[[str, Position], None]


class Log(Protocol):
    """The contract of a log: where a hub keeps its events, in an append-only log for each topic.

    The first event of a topic creates it. Its log has an epoch, which no other log has. The offsets
    of its events begin with 1 and have no holes. The log forgets old events when its limits say so.
    No position ever gets a second meaning. A log that has lost newer events, and can tell, begins a
    new epoch. If it can't always tell, its positions have a check, which stands for the event and
    all events before it in the epoch.

    Until a topic is created, the log says that it does not exist: see ``absence`` of :class:`Page`.
    A log that can't, creates a topic also when it is read or followed, or asked for its position.

    The hub calls all methods in one event loop. Coroutine functions may be cancelled at any time:
    a cancelled ``append`` has stored the whole event or nothing. If the log can't be reached, they
    raise :class:`~sse_asgi.hub.HubError` after a bounded time.

    :class:`sse_asgi.testing.LogContract` tests all of this.
    """

    @property
    def limits(self) -> Limits:
        """How many events the log keeps of each topic. The hub holds no more in memory."""
        ...

    def attach(self, deliver: Deliver, created: Created, renewed: Renewed) -> None:
        """Register the functions that tell the hub what happens in the log.

        The log calls them in the event loop of the hub. They do not raise. ``attach`` is called
        once: a log belongs to one hub.

        :param deliver: to be called with new records of a topic that is followed.
        :param created: to be called with each new topic.
        :param renewed: to be called when a topic that is followed has begun a new epoch; and, if it
            does not exist, from time to time, with a position that a client can come back with.
        :raises RuntimeError: the log belongs to another hub.
        """
        ...

    async def append(
        self,
        topic: str,
        body: bytes,
        *,
        key: str | None = None,
        collapse_key: str | None = None,
        final: bool = False,
    ) -> Position:
        """Append an event atomically, with the next offset of the topic, and return its position.

        :param topic: the topic; its first event makes it.
        :param body: the frame of the event, without the id.
        :param key: if the log has an event of the topic with the same key, nothing is appended, and
            the position of that event is returned.
        :param collapse_key: of the events with the same one only the newest need be kept.
        :param final: whether the topic ends with this event. Nothing is appended after it.
        :raises EventTooLargeError: the event is larger than ``limits.max_bytes``.
        :raises TopicEndedError: the topic has ended.
        """
        ...

    async def read(self, topic: str, after: int | None, max_bytes: int) -> Page:
        """Read the events after an offset, oldest first, without a hole.

        If the log no longer has the first of them, begin with the oldest event that it has.

        :param topic: the name of the topic. It need not exist.
        :param after: the offset; ``None``: return no records, only how far the log reaches.
        :param max_bytes: the size of all bodies together. If there is an event, at least one is
            returned, whatever its size.
        """
        ...

    def position(self, topic: str) -> Position | None:
        """Return the newest position of a topic, or ``None`` if that needs waiting.

        If the topic does not exist, it is the present moment of its absence.

        :param topic: the topic; it need not exist.
        """
        ...

    def has_ended(self, topic: str) -> bool | None:
        """Return whether a topic has ended, or ``None`` if that needs waiting.

        :param topic: the topic; one that does not exist has not ended.
        """
        ...

    def topics(self) -> Iterable[str] | None:
        """Return all topics, or ``None`` if :meth:`follow_topics` has to be called first."""
        ...

    async def follow_topics(self) -> None:
        """Look up all topics, for :meth:`topics`, and from now on call ``created`` for new ones.

        If they are followed already, call it for those that are new until now.
        """
        ...

    def follow(self, topic: str, after: Position) -> None:
        """Deliver all events of a topic after a position from now on, in order.

        The position may be one of an absence: then all events, from the first one on.

        :param topic: the topic; it need not exist.
        :param after: the position of the last event that is not to be delivered.
        """
        ...

    def unfollow(self, topic: str) -> None:
        """Stop delivering the events of a topic.

        :param topic: a topic that is followed.
        """
        ...

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Do the background work of the log. Runs while the hub is open, until it is cancelled.

        :param task_status: to be told when the log can be used.
        """
        ...


class BatchLog(Log, Protocol):
    """A log that appends several events in one step. Without this, the hub appends each by itself.

    :class:`sse_asgi.testing.LogContract` tests it if a log has it.
    """

    async def append_many(self, topic: str, records: Sequence[NewRecord]) -> list[Position]:
        """Append events atomically: all or none, in this order, next to each other.

        What holds for the key of :meth:`Log.append` holds for each of them, as if they were
        appended one after another. So if an attempt may have failed, the same call may be made
        again.

        :param topic: the topic; its first event makes it.
        :param records: the events.
        :returns: their positions, in the same order; an empty list if there are no events.
        :raises EventTooLargeError: one of them is larger than ``limits.max_bytes``.
        :raises TopicEndedError: the topic has ended, and does not have all of them.
        """
        ...
