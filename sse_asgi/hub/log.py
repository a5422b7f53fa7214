"""What a hub needs of the log that it stands on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from ..errors import EventTooLargeError
from .positions import Position

__all__ = ["IDLE", "TIME_SLICE", "Created", "Deliver", "Limits", "Log", "Page", "Record", "Renewed"]

#: For how long, in seconds, a topic stays that has no event and is not used: a page that was made
#: with its position may still be on its way.
IDLE = 300.0

#: For how many seconds events are passed on before others have a turn.
TIME_SLICE = 0.005


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
