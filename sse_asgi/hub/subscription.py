"""A subscription: a position in the log of each topic, and nothing else.

A subscription has no queue. It reads all events from the logs: those that were published before it
began, while its client was away, or while it was busy. Replay and live events are the same read.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar
from weakref import ReferenceType

import anyio

from ..encoder import encode
from ..errors import HTTPError
from ..runtime import current
from .asking import answer_of
from .beginning import Beginning
from .channel import BATCH, Cursor, positions_of
from .each import changed
from .log import newest_of_each
from .positions import Position, join
from .rest import Rest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ..types import EventLike, FrameReceiver
    from .beginning import Start
    from .log import Page, Record
    from .registry import Registry

__all__ = ["Policy", "Subscription"]

T = TypeVar("T")

#: What happens to a subscriber that is too slow: see :meth:`Hub.subscribe`.
Policy: TypeAlias = Literal["gap", "disconnect", "latest"]

#: How long the response waits, in seconds, to know whether the topics have ended. If the log does
#: not answer, it starts without knowing.
LOOK = 1.0


class Subscription(AsyncIterator[bytes]):
    """The events of some topics, as frames: what :meth:`Hub.subscribe` returns.

    It is an async iterator, for a factory to return. It counts as a subscriber from its first step,
    or from when a stream opens it, until it is closed, or until nobody refers to it any more.
    """

    __slots__ = (
        "__weakref__", "_asking", "_batch", "_beginning", "_cursors", "_due", "_each", "_first",
        "_last_event_id", "_over", "_receiver", "_registry", "_rest", "_runtime",
        "_simple", "_wake", "info", "patterns", "policy", "reference", "topics",
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
        each: Callable[[Any], EventLike | None] | None,
    ) -> None:
        self._over = False
        self._registry = registry
        #: A weak reference to it: the hub does not keep it.
        self.reference: ReferenceType[Subscription] = ReferenceType(self)
        #: The topics that it subscribes to, without patterns.
        self.topics: tuple[str, ...] = topics
        #: The patterns that it subscribes to.
        self.patterns: tuple[str, ...] = patterns
        #: What happens when it is too slow.
        self.policy: Policy = policy
        #: What the application has passed as ``info``.
        self.info: Any = info
        self._last_event_id = beginning.last_event_id
        # Released when each cursor has a position: an idle subscription is to take little memory.
        self._beginning: Beginning | None = beginning
        self._cursors: list[Cursor] = []
        # Those that may have something new, the next one first; unused if it is simple.
        self._due: list[Cursor] = []
        # "latest" needs all events, to find the newest one of each key.
        self._batch = sys.maxsize if policy == "latest" else BATCH
        self._each = each
        # With one topic, the frames of the log are sent as they are.
        self._simple = len(topics) == 1 and not patterns and policy != "latest" and each is None
        self._wake: Callable[[], object] | None = None
        self._receiver: FrameReceiver | None = None
        self._asking: anyio.CancelScope | None = None
        self._runtime: Any = None
        self._first = b""  # what is there before the first step
        self._rest: Rest | None = None  # what comes after it was closed

    def __repr__(self) -> str:
        return f"<Subscription {', '.join(self.topics + self.patterns)}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Wait for events, and return all that there are, up to a bound, as one frame."""
        if first := self._first:
            self._first = b""
            return first
        while not self._over:
            if self._beginning is not None:
                frame = await self._begin(self._beginning)
            elif (frame := self._take()) is None and not self._over:
                if (cursor := self._outside_window()) is not None:
                    frame = await self._ask_log(cursor)
                    self._due += self._due[:1]
                    del self._due[:1]
                else:
                    try:  # not in another coroutine: it would take memory while it waits
                        await self._runtime.parked(self._wake_by)
                    finally:
                        self._wake = None
                        self._registry.awaited.discard(self)
            if frame is not None:
                return frame
        if self._rest is not None:
            if (frame := await self._rest.next()) is not None:
                return frame
            self._rest = None
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the subscription, as :meth:`close` does."""
        self.close()

    def close(self, last: EventLike | None = None) -> None:
        """Close the subscription. Its stream ends as if there were no more events.

        Call it in the event loop of the hub.

        :param last: an event to be sent before the end, to say why. What was published before comes
            before it, unless the log can't be reached.
        """
        if not self._over:
            if last is not None:
                log, ends = self._registry.log, self.policy == "disconnect"
                self._rest = Rest(log, self._cursors, self._take_page, encode(last), ends)
            self._over = True
            self._receiver = None
            if self._has_entered:
                self._registry.leave(self.reference, self._cursors, self.patterns)
            self._look()
            if self._asking is not None:
                self._asking.cancel()

    def __del__(self) -> None:
        """Leave the hub, if nobody has closed it."""
        if not self._over and self._has_entered:
            self._registry.leave_soon(self.reference, self._cursors, self.patterns)

    @property
    def _has_entered(self) -> bool:
        return self._beginning is None or self._beginning.entered

    def give_to(self, receiver: FrameReceiver) -> None:
        """Pass events to a receiver, if it is ready, while a step waits for them."""
        # What a function of the application's raises has to leave a step.
        if not self._over and self._each is None:
            self._receiver = receiver

    # -- for the registry ------------------------------------------------------------------------

    def add(self, cursor: Cursor, start: Start) -> None:
        """Add a topic to the subscription."""
        self._cursors.append(cursor)
        if self._beginning is None:
            self._beginning = Beginning(self.topics, self._last_event_id)
            self._beginning.entered = True
        self._beginning.unsettled.append((cursor, start))
        self._look()

    def notify(self, cursor: Cursor) -> None:
        """Look for new events of a topic."""
        self._mark(cursor)
        self._look()

    def _mark(self, cursor: Cursor) -> None:
        """Note that a topic may have new events."""
        if not cursor.is_due and not self._simple:
            cursor.is_due = True
            self._due.append(cursor)

    def _look(self) -> None:
        """Look for new events, and wake the task that waits for them if necessary."""
        wake = self._wake
        if wake is not None and not self._push() and self._wake is wake:
            self._wake = None
            wake()

    def _push(self) -> bool:
        """Pass all new events to the receiver; return whether the waiting task need not wake.

        Waking a task takes longer than sending an event.
        """
        receiver = self._receiver
        if receiver is None or self._over or self._beginning is not None:
            return False
        while receiver.ready():
            frame = self._take()
            if frame is None:
                return self._outside_window() is None
            receiver.accept(frame)
            if self._simple and self._cursors[0].has_all():  # else the next round finds out
                return True
        return False

    # -- from the windows ------------------------------------------------------------------------

    def _take(self) -> bytes | None:
        """Return the next events in the windows, joined, up to a bound.

        It stops at a topic whose log has to be read. A topic that may have more comes last the next
        time: a busy topic does not hold up the others.
        """
        if self._simple:
            cursor = self._cursors[0]
            frame = cursor.take()
            if cursor.has_ended:
                self._end_if_all_have()
            return frame
        frames: list[bytes] = []
        size = 0
        due = self._due
        while due and size < BATCH:
            cursor = due[0]
            records = cursor.records(self._batch)
            if records is None:
                break
            del due[0]
            if records:
                before = len(frames)
                self._move(cursor, records, frames)
                size += sum(map(len, frames[before:]))
                due.append(cursor)
            else:
                cursor.is_due = False
        return b"".join(frames) if frames else None

    def _move(self, cursor: Cursor, records: Sequence[Record], frames: list[bytes]) -> None:
        """Append the frames of some records, and move the cursor past them."""
        last = records[-1]
        if self.policy == "latest":
            records = newest_of_each(records)
        each = self._each
        if len(self.topics) == 1 and not self.patterns and each is None:
            frames += [record.frame for record in records]
        else:
            for record in records:
                cursor.read(record)
                body = record.body if each is None else changed(record.body, each)
                if body is not None or record.final:  # the client has to have the id of that
                    frames.append(b"id: %s\n%s" % (self._id().encode(), body or b"\n"))
        cursor.read(last)
        if cursor.has_ended:
            self._end_if_all_have()

    def _end_if_all_have(self) -> None:
        """Close the subscription if all of its topics have ended."""
        if not self.patterns and all(cursor.has_ended for cursor in self._cursors):
            self.close()

    def _outside_window(self) -> Cursor | None:
        """Return the next cursor, if its events are not in its window: the log has to be read."""
        due = self._cursors if self._simple else self._due
        return due[0] if due and due[0].records(0) is None else None

    def _id(self) -> str:
        """Return the id for the positions in all topics."""
        return join(positions_of(self._cursors, self.topics))

    # -- the beginning ---------------------------------------------------------------------------

    async def _begin(self, beginning: Beginning) -> bytes | None:
        """Give the cursors their positions, and return the gap events that come first, if any."""
        if not beginning.entered:
            await self._enter(beginning)
            if self._over:
                return None
        if (found := await beginning.pages(self._read)) is None:
            return None
        if beginning.looks_again(found):
            await self._retry(partial(self._registry.find, self.patterns))
            return None
        missing, gone = beginning.settle(found)
        for cursor, _, _ in found:
            self._mark(cursor)
        # One after another. Until the client is told of the gap in a topic, the id must keep the
        # position before that gap.
        gaps = [self._gap(cursor, page, self._last_event_id) for cursor, page in missing]
        if gone and not gaps:
            given = self._last_event_id or ""
            gaps = [self._registry.gap(given, self._id(), None, None)]
        if not beginning.unsettled:
            self._beginning = None
            self._end_if_all_have()
        return b"".join(gaps) or None

    async def _enter(self, beginning: Beginning) -> None:
        """Look up the topics, and then enter the registry, if not closed by then."""
        self._runtime = current()  # looked up once
        starts = beginning.starts
        if beginning.matching is not None and not self._registry.knows_topics():
            found = await self._retry(partial(self._registry.find, self.patterns))
            starts = {**dict.fromkeys(found or (), beginning.matching), **starts}
        if not self._over:
            self._registry.affinity.use()
            beginning.entered = True
            self._registry.enter(self, starts)

    def _sse_asgi_before_start(self) -> Awaitable[object] | None:
        """Return what a stream has to await before its response starts; ``None``: nothing.

        Awaiting it raises :class:`~sse_asgi.HTTPError` with the status 204 if all topics have
        ended, and there is nothing more for the client: that tells an ``EventSource`` to stop.
        """
        if self.patterns or not self._registry.may_have_ended(self.topics):
            return None
        return self._look_before_start()

    async def _look_before_start(self) -> None:
        with anyio.move_on_after(LOOK):
            while self._beginning is not None and not self._over:
                self._first += await self._begin(self._beginning) or b""
        if self._cursors and not self._first and all(c.has_ended for c in self._cursors):
            raise HTTPError(204)

    # -- from the log ----------------------------------------------------------------------------

    async def _read(self, cursor: Cursor, after: int | None, max_bytes: int) -> Page | None:
        """Read the log. Return ``None`` if the subscription is closed: its channel may be gone."""
        page = await self._retry(partial(self._registry.log.read, cursor.topic, after, max_bytes))
        if page is not None:
            cursor.channel.follow(page)
        return page

    async def _retry(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """Ask the log until it answers. The stream stays open while the log can't be reached.

        :returns: the answer; ``None``, at once, when the subscription is closed.
        """
        with anyio.CancelScope() as self._asking:
            try:
                return await answer_of(ask, lambda: self._over)
            finally:
                self._asking = None
        return None

    async def _ask_log(self, cursor: Cursor) -> bytes | None:
        """Read the next events of a topic from the log, and return their frames, or a gap event."""
        page = await self._read(cursor, cursor.offset, self._batch)
        if page is None or cursor.begin(page):
            return None
        if self.policy == "disconnect" and not cursor.continues(page):
            self.close()
            return None
        return self._take_page(cursor, page)

    def _take_page(self, cursor: Cursor, page: Page) -> bytes | None:
        """Return the frames of the events of a page, if there are any, or a gap event."""
        if not cursor.continues(page):
            return self._gap(cursor, page, None)
        frames: list[bytes] = []
        if page.records:
            self._move(cursor, page.records, frames)
        return b"".join(frames) or None

    def _gap(self, cursor: Cursor, page: Page, last_event_id: str | None) -> bytes:
        """Return a gap event for a topic, and move its cursor before the oldest event.

        :param last_event_id: the id that the client has sent, if the gap follows it.
        """
        missed = None
        if cursor.epoch == page.epoch and cursor.offset < page.first - 1 and not page.absent:
            missed = page.first - 1 - cursor.offset
        after = str(cursor.position) if last_event_id is None else last_event_id
        before = page.first - 1
        cursor.move(Position(page.epoch, before, page.checks.get(before, "")))
        cursor.has_ended = page.ended and before == page.last
        if cursor.has_ended:
            self._end_if_all_have()
        topic = cursor.topic if len(self._cursors) > 1 or self.patterns else None
        return self._registry.gap(after, self._id(), missed, topic)

    def _wake_by(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._registry.awaited.add(self)
