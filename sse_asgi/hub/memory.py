"""A hub's log in the memory of this process."""

from __future__ import annotations

import itertools
import math
import os
from collections import OrderedDict
from hashlib import blake2b
from time import monotonic
from typing import TYPE_CHECKING

from anyio import TASK_STATUS_IGNORED, Lock, NoEventLoopError
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ..errors import TopicEndedError, TopicRunningError
from ..runtime import current
from .log import IDLE, NO_CHECKS, TIME_SLICE, Absence, Limits, NewRecord, Page, Record
from .memory_presence import MemoryPresence
from .positions import Position, new_epoch
from .run_log import ANY_RUNNER
from .window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from anyio.abc import TaskStatus

    from ..runtime.base import Runtime
    from .log import Created, Deliver, Renewed
    from .presence_log import PresenceLog

__all__ = ["MemoryLog"]

#: How much may be appended before other tasks run, as a share of what the log keeps. It is small:
#: a subscriber that reads as fast as it can must never find its next event gone.
BURST = 1 / 64


class _Topic:
    """The log of one topic."""

    __slots__ = ("created", "ended", "keys", "runner", "used", "window")

    def __init__(self, created: float) -> None:
        self.window = Window(new_epoch())
        self.created = created
        self.ended = False
        self.runner: str | None = None
        self.keys: dict[str, int] = {}  # of events that are kept, with their offsets
        self.used = 0.0

    def has_runner(self, runner: str) -> bool:
        """Return whether the topic has this runner."""
        return self.runner is not None and runner in (self.runner, ANY_RUNNER)


class MemoryLog:
    """A log in the memory of this process.

    :param max_events: how many events of each topic the log keeps (1000).
    :param max_bytes: how many bytes of them (1 MiB).
    :param max_age: for how many seconds it keeps them; ``None``, the default: without a limit.
    :raises TypeError: a parameter has a wrong type.
    :raises ValueError: a parameter is out of range.
    """

    def __init__(
        self,
        max_events: int = 1000,
        max_bytes: int = 1024 * 1024,
        max_age: float | None = None,
    ) -> None:
        self.limits: Limits = Limits.checked(max_events, max_bytes, max_age)
        self.presence: PresenceLog = MemoryPresence()
        self.lease: float = math.inf
        # The least recently used first.
        self._topics: OrderedDict[str, _Topic] = OrderedDict()
        self._followed: set[str] = set()
        # Makes the epochs of topics that do not exist.
        self._secret = os.urandom(16)
        self._burst = self._yielded = 0.0
        self._runtime: Runtime | None = None
        self._clock: Callable[[], float] = float
        self._one_at_a_time = Lock()
        self._deliver: Deliver | None = None
        self._created: Created | None = None

    def attach(self, deliver: Deliver, created: Created, renewed: Renewed) -> None:
        """See :meth:`Log.attach`. No topic begins a new epoch, so ``renewed`` is not called."""
        if self._deliver is not None:
            raise RuntimeError("this log belongs to another hub")
        self._deliver, self._created = deliver, created

    async def append(
        self,
        topic: str,
        body: bytes,
        *,
        key: str | None = None,
        collapse_key: str | None = None,
        final: bool = False,
    ) -> Position:
        """See :meth:`Log.append`."""
        self.limits.check(body)
        await self._let_others_run(1, len(body))
        (position,) = self._append(topic, (NewRecord(body, key, collapse_key, final),))
        return position

    async def append_many(self, topic: str, records: Sequence[NewRecord]) -> list[Position]:
        """See :meth:`BatchLog.append_many`."""
        size = 0
        for record in records:
            self.limits.check(record.body)
            size += len(record.body)
        if not records:
            return []
        self._now()  # makes the lock
        # One at a time: if many such calls went on at once, subscribers would not keep up.
        async with self._one_at_a_time:
            await self._let_others_run(len(records), size)
            return self._append(topic, records)

    async def begin_run(self, topic: str, runner: str, last: bytes) -> None:
        """See :meth:`RunLog.begin_run`."""
        self.limits.check(last)
        await checkpoint()
        kept = self._use(topic)
        if kept.ended:
            raise TopicEndedError(f"the topic {topic!r:.80} has ended")
        if kept.runner not in (None, runner):
            raise TopicRunningError(f"the topic {topic!r:.80} has a run")
        kept.runner = runner

    async def append_of_run(
        self, topic: str, body: bytes, *, runner: str, key: str | None = None, final: bool = False
    ) -> Position:
        """See :meth:`RunLog.append_of_run`."""
        self.limits.check(body)
        await self._let_others_run(1, len(body))
        if topic not in self._topics:
            raise TopicRunningError(f"the topic {topic!r:.80} does not exist")
        (position,) = self._append(topic, (NewRecord(body, key, None, final, runner),))
        return position

    async def renew_runs(self, runners: Mapping[str, str]) -> Collection[str]:
        """See :meth:`RunLog.renew_runs`. It need not be called."""
        await checkpoint()
        kept = ((topic, self._topics.get(topic)) for topic in runners)
        return [topic for topic, each in kept if each is None or each.runner != runners[topic]]

    async def read(self, topic: str, after: int | None, max_bytes: int) -> Page:
        """See :meth:`Log.read`."""
        await checkpoint()
        kept = self._find(topic)
        if kept is None:
            absence = self._absence(topic, self._now())
            return Page(absence.epoch, absence.until + 1, absence.until, absence=absence)
        window = kept.window
        records = () if after is None else window.after(after, max_bytes)
        checks = NO_CHECKS if after is None else {min(after, window.last): ""}
        absence = self._absence(topic, kept.created)
        return Page(window.epoch, window.first, window.last, records, checks, kept.ended, absence)

    def position(self, topic: str) -> Position:
        """See :meth:`Log.position`. It is always known."""
        kept = self._find(topic)
        if kept is None:
            epoch, _, now = self._absence(topic, self._now())
            return Position(epoch, now)
        return Position(kept.window.epoch, kept.window.last)

    def has_ended(self, topic: str) -> bool:
        """See :meth:`Log.has_ended`. It is always known."""
        kept = self._topics.get(topic)
        return kept is not None and kept.ended

    def topics(self) -> Iterable[str]:
        """See :meth:`Log.topics`. They are always known."""
        return tuple(self._topics)

    async def follow_topics(self) -> None:
        """See :meth:`Log.follow_topics`. They are always followed."""

    def follow(self, topic: str, after: Position) -> None:
        """See :meth:`Log.follow`. New events are delivered whether a topic is followed or not."""
        self._followed.add(topic)
        kept = self._find(topic)
        if kept is None or self._deliver is None:
            return
        window = kept.window
        begins = self._absence(topic, kept.created).covers(after)
        offset = 0 if begins else after.offset
        if (begins or after.epoch == window.epoch) and offset < window.last:
            self._deliver(topic, window.after(offset, self.limits.max_bytes))

    def unfollow(self, topic: str) -> None:
        """See :meth:`Log.unfollow`."""
        self._followed.discard(topic)

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """See :meth:`Log.run`. There is nothing to do."""
        task_status.started()

    def _append(self, topic: str, records: Sequence[NewRecord]) -> list[Position]:
        """Append events, and deliver those that are new."""
        kept = self._use(topic)
        window = kept.window
        positions: list[Position] = []
        new: list[Record] = []
        for body, key, collapse_key, final, runner in records:
            offset = None if key is None else kept.keys.get(key)
            if offset is None and kept.ended:
                raise TopicEndedError(f"the topic {topic!r:.80} has ended")
            if offset is None and runner is not None and not kept.has_runner(runner):
                raise TopicRunningError(f"the topic {topic!r:.80} does not have this run")
            if offset is None:
                offset = window.last + 1
                record = Record(window.epoch, offset, body, collapse_key, final=final)
                window.append(record, kept.used)
                new.append(record)
                if final:
                    kept.ended, kept.runner = True, None
                if key is not None:
                    kept.keys[key] = offset
                self._trim(kept)
            positions.append(Position(window.epoch, offset))
        if new and self._deliver is not None:
            self._deliver(topic, new)
        return positions

    async def _let_others_run(self, count: int, size: int) -> None:
        """Let other tasks run, from time to time.

        If many events are appended in a row, the subscribers run after several of them, and get
        these joined. If many are appended in one step, the subscribers run as often before it.

        :param count: how many events are appended next, of so many bytes together.
        """
        self._burst += count / self.limits.max_events + size / self.limits.max_bytes
        if self._burst < BURST and monotonic() - self._yielded < TIME_SLICE:
            await checkpoint_if_cancelled()
        else:
            for _ in range(max(1, min(count, int(self._burst / BURST)))):
                await checkpoint()
            self._burst, self._yielded = 0.0, monotonic()

    def _use(self, topic: str) -> _Topic:
        """Return the log of a topic, without events that are too old. Create it if necessary."""
        kept = self._find(topic)
        if kept is None:
            now = self._now()
            self._forget_idle(now)
            kept = self._topics[topic] = _Topic(now)
            kept.used = now
            if self._created is not None:
                self._created(topic)
        return kept

    def _find(self, topic: str) -> _Topic | None:
        """Return the log of a topic, without events that are too old, if there is one."""
        now = self._now()
        kept = self._topics.get(topic)
        if kept is not None:
            self._topics.move_to_end(topic)
            kept.used = now
            if self.limits.max_age < math.inf:
                self._trim(kept)
        return kept

    def _absence(self, topic: str, until: float) -> Absence:
        """Return when a topic did not exist: a moment is a millisecond.

        :param until: when it was created, or the present time.
        """
        name = topic.encode("utf-8", "surrogatepass")
        epoch = blake2b(name, key=self._secret, digest_size=6).hexdigest()
        last = int(until * 1000)
        # So long a topic is kept at least. Without a limit of age, events are kept for ever.
        kept = max(IDLE, self.limits.max_age)
        return Absence(epoch, 0 if kept == math.inf else max(0, last + 1 - int(kept * 1000)), last)

    def _trim(self, kept: _Topic) -> None:
        """Remove the events beyond the limits, and their keys."""
        kept.window.trim(self.limits, kept.used)
        first = kept.window.first
        while kept.keys and kept.keys[oldest := next(iter(kept.keys))] < first:
            del kept.keys[oldest]

    def _forget_idle(self, now: float) -> None:
        """Remove topics that have no events and are not used.

        Only the first few are looked at, so that a call is cheap.
        """
        for topic, kept in tuple(itertools.islice(self._topics.items(), 4)):
            if kept.used > now - IDLE:
                break
            kept.window.trim(self.limits, now)
            if len(kept.window) or topic in self._followed or kept.runner is not None:
                self._topics.move_to_end(topic)
            else:
                del self._topics[topic]

    def _now(self) -> float:
        """Return the time of the running event loop."""
        if self._runtime is None or not self._runtime.runs_here():
            try:
                runtime = current()
            except NoEventLoopError:  # in a callback of the event loop
                if self._runtime is None:
                    raise
                return self._clock()
            if runtime is not self._runtime:  # the first use, or another event loop
                self._runtime, self._clock = runtime, runtime.clock
                self._one_at_a_time = Lock()
                self._secret = os.urandom(16)  # this clock has other moments
        return self._clock()
