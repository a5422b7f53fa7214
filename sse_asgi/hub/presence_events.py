"""Events of those who come to a topic and go."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Self

from ..event import ServerSentEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .affinity import Affinity
    from .presence_log import PresenceLog

__all__ = ["PresenceEvents", "Watches"]

#: How many of the newest changes of a topic are kept for those who read them. Who is further behind
#: gets the whole list again.
KEPT = 1000


class _Watch:
    """The infos of a topic that somebody here reads the changes of, and the newest changes."""

    def __init__(self, topic: str) -> None:
        self.topic: str = topic
        #: The infos that are present; ``None``: not known yet.
        self.infos: dict[str, None] | None = None
        #: How many changes there were, and the newest of them.
        self.version: int = 0
        self.changes: deque[ServerSentEvent[str]] = deque(maxlen=KEPT)
        #: How many read them, and those of them that wait.
        self.readers: int = 0
        self.waiting: dict[PresenceEvents, Callable[[], object]] = {}
        self.over: bool = False
        self._list: tuple[int, ServerSentEvent[str]] | None = None

    def change(self, info: str, present: bool) -> None:
        """Note that an info has come or gone. What is known already is no change."""
        if self.infos is None or present == (info in self.infos):
            return
        if present:
            self.infos[info] = None
        else:
            del self.infos[info]
        self.version += 1
        self.changes.append(ServerSentEvent(info, event="join" if present else "leave"))
        self.wake()

    def find(self, infos: Sequence[str], complete: bool) -> None:
        """Note all infos, as far as the log knows them."""
        if self.infos is None:
            self.infos = dict.fromkeys(infos)
            self.wake()
            return
        gone = self.infos.keys() - set(infos) if complete else ()
        for info in infos:
            self.change(info, True)
        for info in gone:
            self.change(info, False)

    def event_after(self, version: int | None) -> tuple[int, ServerSentEvent[str]] | None:
        """Return the next event of a reader, and which version it then has.

        :param version: which it has now; ``None``: it has just begun.
        """
        if self.infos is None or version == self.version:
            return None
        oldest = self.version - len(self.changes)
        if version is not None and version >= oldest:
            return version + 1, self.changes[version - oldest]
        if self._list is None or self._list[0] != self.version:
            event = ServerSentEvent(f"[{','.join(self.infos)}]", event="presence")
            self._list = self.version, event
        return self._list

    def wake(self) -> None:
        """Wake those who wait."""
        waiting, self.waiting = self.waiting, {}
        for wake in waiting.values():
            wake()


class Watches:
    """The topics that somebody here reads the changes of."""

    def __init__(self, log: PresenceLog, affinity: Affinity) -> None:
        self._log = log
        self.affinity: Affinity = affinity
        self._watches: dict[str, _Watch] = {}

    def enter(self, topic: str) -> _Watch:
        """Add a reader."""
        watch = self._watches.get(topic)
        if watch is None:
            watch = self._watches[topic] = _Watch(topic)
            self._log.follow(topic)
        watch.readers += 1
        return watch

    def leave(self, watch: _Watch) -> None:
        """Remove a reader."""
        watch.readers -= 1
        if not watch.readers and self._watches.get(watch.topic) is watch:
            del self._watches[watch.topic]
            self._log.unfollow(watch.topic)

    def changed(self, topic: str, info: str, present: bool) -> None:
        """See :meth:`PresenceLog.attach`."""
        if (watch := self._watches.get(topic)) is not None:
            watch.change(info, present)

    def found(self, topic: str, infos: Sequence[str], complete: bool) -> None:
        """See :meth:`PresenceLog.attach`."""
        if (watch := self._watches.get(topic)) is not None:
            watch.find(infos, complete)

    def close(self) -> None:
        """End the streams of all readers."""
        watches, self._watches = self._watches, {}
        for watch in watches.values():
            self._log.unfollow(watch.topic)
            watch.over = True
            watch.wake()


class PresenceEvents(AsyncIterator[ServerSentEvent[str]]):
    """Who is present in a topic, who comes and who goes: see :meth:`Hub.presence_events`.

    It is an async iterator of events, for a factory to return. It begins with its first step, and
    ends when it is closed, by its stream or by you, when the hub is closed, or when nobody refers
    to it any more.
    """

    __slots__ = ("__weakref__", "_over", "_topic", "_version", "_watch", "_watches")

    def __init__(self, watches: Watches, topic: str) -> None:
        self._watches = watches
        self._topic = topic
        self._watch: _Watch | None = None
        self._version: int | None = None
        self._over = False

    def __repr__(self) -> str:
        return f"<PresenceEvents {self._topic}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ServerSentEvent[str]:
        """Wait for the next event."""
        affinity = self._watches.affinity
        if affinity.closed:
            self.close()
        if self._watch is None and not self._over:
            affinity.use()
            self._watch = self._watches.enter(self._topic)
        runtime: Any = affinity.runtime
        while not self._over and (watch := self._watch) is not None and not watch.over:
            if (found := watch.event_after(self._version)) is not None:
                self._version, event = found
                return event
            try:
                await runtime.parked(self._wake_by)
            finally:
                watch.waiting.pop(self, None)
        self.close()
        raise StopAsyncIteration

    def _wake_by(self, wake: Callable[[], object]) -> None:
        if self._watch is not None:
            self._watch.waiting[self] = wake

    async def aclose(self) -> None:
        """Close it, as :meth:`close` does."""
        self.close()

    def close(self) -> None:
        """Close it. Its stream ends as if there were no more events."""
        if not self._over:
            self._over = True
            if (watch := self._watch) is not None:
                self._watches.leave(watch)
                if (wake := watch.waiting.pop(self, None)) is not None:
                    wake()

    def __del__(self) -> None:
        """Leave, if nobody has closed it."""
        if not self._over and self._watch is not None:
            runtime = self._watches.affinity.runtime
            if runtime is not None:
                runtime.from_thread(self._watches.leave, self._watch)
