"""A subscription: a place in the log of each topic, and nothing else.

There is no queue. What a subscriber has not had yet is in the log, whether it was published while
it looked elsewhere, before it came, or while it was away; replay and live events are the same read.
"""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar

import anyio

from ..encoder import encode
from ..errors import HubClosedError, HubError
from ..loops import current_loop, parked
from .beginning import Beginning
from .channel import BATCH, Cursor
from .positions import join

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from ..types import EventLike, FrameReceiver
    from .beginning import Found, Start
    from .log import Page, Record
    from .registry import Registry

__all__ = ["Policy", "Subscription"]

T = TypeVar("T")

#: What becomes of a subscriber that is behind: see :meth:`Hub.subscribe`.
Policy: TypeAlias = Literal["gap", "disconnect", "latest"]

#: For how long, in seconds, a log is left alone that can't be reached; it has waited itself.
PAUSE = (0.5, 1.0)

#: How much of an id is shown to the client that has sent it.
SHOWN = 64


class Subscription(AsyncIterator[bytes]):
    """The events of some topics, as frames: what :meth:`Hub.subscribe` returns.

    An async iterator for a factory to return. It counts as a subscriber from its first step until
    it is closed, and is closed with its stream. Whoever iterates one himself closes it himself.
    """

    __slots__ = (
        "__weakref__", "_asking", "_batch", "_beginning", "_cursors", "_last", "_last_event_id",
        "_loop", "_next", "_over", "_receiver", "_registry", "_simple", "_wake", "info",
        "patterns", "policy", "topics",
    )  # fmt: skip

    def __init__(
        self,
        registry: Registry[Subscription],
        topics: tuple[str, ...],
        patterns: tuple[str, ...],
        beginning: Beginning,
        *,
        policy: Policy,
        info: Any,
    ) -> None:
        self._registry = registry
        #: The topics that it was made for, patterns apart.
        self.topics: tuple[str, ...] = topics
        #: The patterns that it was made for.
        self.patterns: tuple[str, ...] = patterns
        #: What becomes of it when it is behind.
        self.policy: Policy = policy
        #: Whatever the application has given it, to know it by.
        self.info: Any = info
        self._last_event_id = beginning.last_event_id
        # Until each cursor has its place. Then it is let go: most subscriptions wait, with theirs.
        self._beginning: Beginning | None = beginning
        self._cursors: list[Cursor] = []
        self._next = 0  # the next cursor to be looked at
        # Of each key the newest, however many there are.
        self._batch = sys.maxsize if policy == "latest" else BATCH
        # The frames are those of the log.
        self._simple = len(topics) == 1 and not patterns and policy != "latest"
        self._wake: Callable[[], object] | None = None
        self._receiver: FrameReceiver | None = None
        self._asking: anyio.CancelScope | None = None
        self._loop: object = None
        self._last: bytes | None = None
        self._over = False

    def __repr__(self) -> str:
        return f"<Subscription {', '.join(self.topics + self.patterns)}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Wait for events; all that there are, up to a bound, as one frame."""
        while not self._over:
            if self._beginning is not None:
                frame = await self._begin(self._beginning)
            elif (frame := self._take()) is None:
                if (cursor := self._outside_window()) is not None:
                    frame = await self._ask_log(cursor)
                    self._next += 1
                else:
                    try:  # here: a coroutine of its own is memory for as long as it waits
                        await parked(self._loop, self._wake_by)
                    finally:
                        self._wake = None
            if frame is not None:
                return frame
        if (last := self._last) is not None:
            self._last = None
            return last
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop: :meth:`close`."""
        self.close()

    def close(self, last: EventLike | None = None) -> None:
        """End it; its stream ends as if there were no more events. In the hub's event loop.

        :param last: an event that is still sent, to say why.
        """
        if not self._over:
            self._last = None if last is None else encode(last)
            self._over = True
            self._receiver = None
            if self._beginning is None or self._beginning.entered:
                self._registry.leave(self)
            self.notify()
            if self._asking is not None:
                self._asking.cancel()

    def give_to(self, receiver: FrameReceiver) -> None:
        """Give what comes while a step waits to ``receiver``, if that is ready, instead."""
        if not self._over:
            self._receiver = receiver

    # -- for the hub -----------------------------------------------------------------------------

    @property
    def cursors(self) -> Collection[Cursor]:
        """Where it is, in each topic."""
        return self._cursors

    def add(self, cursor: Cursor, start: Start) -> None:
        """Have one more topic."""
        self._cursors.append(cursor)
        if self._beginning is None:
            self._beginning = Beginning(self.topics, self._last_event_id)
            self._beginning.entered = True
        self._beginning.unsettled.append((cursor, start))
        self.notify()

    def notify(self) -> None:
        """See whether there is something."""
        if self._wake is not None and not self._push():
            wake, self._wake = self._wake, None
            wake()

    def _push(self) -> bool:
        """Give all that is at hand to whom it is for; whether whoever waits for it need not wake.

        To wake a task takes longer than to send an event.
        """
        receiver = self._receiver
        if receiver is None or self._over or self._beginning is not None:
            return False
        while receiver.ready():
            frame = self._take()
            if frame is None:
                return self._outside_window() is None
            receiver.accept(frame)
        return False

    # -- what is at hand -------------------------------------------------------------------------

    def _take(self) -> bytes | None:
        """All that is at hand, joined, up to a topic that has to ask the log, or to a bound.

        The next turn begins there: one that always has something does not keep others waiting.
        """
        if self._simple:
            return self._cursors[0].take()
        frames: list[bytes] = []
        size = 0
        for cursor in self._round_robin():
            records = cursor.records(self._batch)
            if records is None:
                break
            self._next += 1
            if records:
                self._move(cursor, records, frames)
                size += sum(len(record.body) for record in records)
                if size >= BATCH:
                    break
        return b"".join(frames) if frames else None

    def _round_robin(self) -> list[Cursor]:
        first = self._next = self._next % max(len(self._cursors), 1)
        return self._cursors[first:] + self._cursors[:first] if first else self._cursors

    def _move(self, cursor: Cursor, records: Sequence[Record], frames: list[bytes]) -> None:
        """Have these events as frames, and be behind them."""
        last = records[-1].offset
        if self.policy == "latest":
            records = _newest(records)
        if len(self.topics) == 1 and not self.patterns:
            frames += [record.frame for record in records]
        else:
            for record in records:
                cursor.offset = record.offset
                frames.append(b"id: %s\n%s" % (self._id().encode(), record.body))
        cursor.offset = last

    def _outside_window(self) -> Cursor | None:
        """A cursor that has to ask the log."""
        for cursor in self._round_robin():
            if cursor.records(0) is None:
                return cursor
        return None

    def _id(self) -> str:
        return join(cursor.position for cursor in self._cursors if cursor.epoch)

    # -- the beginning ---------------------------------------------------------------------------

    async def _begin(self, beginning: Beginning) -> bytes | None:
        """Find out where to begin. What is missing then is said first."""
        if not beginning.entered:
            await self._enter(beginning)
            if self._over:
                return None
        found: list[Found] = []
        for cursor, start in tuple(beginning.unsettled):
            page = beginning.at_hand(cursor, start) or await self._read(cursor, None, 0)
            if page is None:
                return None
            found.append((cursor, start, page))
        missing, gone = beginning.settle(found)
        # One after another: until a client is told of a gap, its id must not say that it was.
        gaps = [self._gap(cursor, page, self._last_event_id) for cursor, page in missing]
        if gone and not gaps:
            gaps = [self._gap_frame(self._last_event_id or "", None, None)]
        if not beginning.unsettled:
            self._beginning = None
        return b"".join(gaps) or None

    async def _enter(self, beginning: Beginning) -> None:
        """Look up the topics, and enter them, unless this is over by then."""
        self._loop = current_loop()  # looked up once
        starts = beginning.starts
        if beginning.matching is not None and not self._registry.knows_topics():
            found = await self._retry(partial(self._registry.find, self.patterns))
            starts = {**dict.fromkeys(found or (), beginning.matching), **starts}
        if not self._over:
            self._registry.enter(self, starts)
            beginning.entered = True

    # -- what the log has to say -----------------------------------------------------------------

    async def _read(self, cursor: Cursor, after: int | None, max_bytes: int) -> Page | None:
        """Ask the log; ``None`` if this is over, and the channel perhaps gone."""
        page = await self._retry(partial(self._registry.log.read, cursor.topic, after, max_bytes))
        if page is not None:
            cursor.channel.follow(page)
        return page

    async def _retry(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """What the log says, when it can be reached; ``None`` if this is over before: at once.

        The stream stays open meanwhile.
        """
        with anyio.CancelScope() as self._asking:
            try:
                while not self._over:
                    try:
                        answer = await ask()
                    except HubClosedError:
                        if not self._over:
                            raise
                    except HubError:
                        await anyio.sleep(random.uniform(*PAUSE))
                    else:
                        return None if self._over else answer
            finally:
                self._asking = None
        return None

    async def _ask_log(self, cursor: Cursor) -> bytes | None:
        """Read on in the log, where the window does not have what comes next."""
        page = await self._read(cursor, cursor.offset, self._batch)
        if page is None:
            return None
        if cursor.continues(page):
            frames: list[bytes] = []
            if page.records:
                self._move(cursor, page.records, frames)
            return b"".join(frames) or None
        if self.policy == "disconnect":
            self.close()
            return None
        return self._gap(cursor, page, None)

    def _gap(self, cursor: Cursor, page: Page, last_event_id: str | None) -> bytes:
        """Say that events are missing, and go on with the oldest that there are."""
        missed = None
        if cursor.epoch == page.epoch and cursor.offset < page.first:
            missed = page.first - 1 - cursor.offset
        after = str(cursor.position) if last_event_id is None else last_event_id
        cursor.epoch, cursor.offset = page.epoch, page.first - 1
        several = len(self._cursors) > 1 or self.patterns
        return self._gap_frame(after, missed, cursor.topic if several else None)

    def _gap_frame(self, after: str, missed: int | None, topic: str | None) -> bytes:
        position = self._id() or None
        data: dict[str, Any] = {"after": after[:SHOWN], "position": position, "missed": missed}
        if topic is not None:
            data["topic"] = topic
        return encode({"event": self._registry.gap_event, "id": position, "data": data})

    def _wake_by(self, wake: Callable[[], object]) -> None:
        self._wake = wake


def _newest(records: Sequence[Record]) -> list[Record]:
    """Of each collapse key the newest record alone; what has none stays."""
    newest = {record.collapse_key: record for record in records}
    return [
        record
        for record in records
        if record.collapse_key is None or newest[record.collapse_key] is record
    ]
