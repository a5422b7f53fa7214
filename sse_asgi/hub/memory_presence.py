"""Presence in the memory of this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio.lowlevel import checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .presence_log import Changed, Found, Received

__all__ = ["MemoryPresence"]


class MemoryPresence:
    """Presence in the memory of this process, which is the only node."""

    def __init__(self) -> None:
        self._subscribers: dict[str, int] = {}
        self._infos: dict[str, dict[str, None]] = {}
        self._followed: set[str] = set()
        self._changed: Changed | None = None
        self._found: Found | None = None
        self._received: Received | None = None

    def attach(self, changed: Changed, found: Found, received: Received) -> None:
        """See :meth:`PresenceLog.attach`."""
        self._changed, self._found, self._received = changed, found, received

    def set_subscribers(self, topic: str, count: int) -> None:
        """See :meth:`PresenceLog.set_subscribers`."""
        if count:
            self._subscribers[topic] = count
        else:
            self._subscribers.pop(topic, None)

    def set_present(self, topic: str, info: str, present: bool) -> None:
        """See :meth:`PresenceLog.set_present`."""
        infos = self._infos.setdefault(topic, {})
        changes = present != (info in infos)
        if present:
            infos[info] = None
        else:
            infos.pop(info, None)
            if not infos:
                del self._infos[topic]
        if changes and topic in self._followed and self._changed is not None:
            self._changed(topic, info, present)

    async def infos(self, topic: str) -> Sequence[str]:
        """See :meth:`PresenceLog.infos`."""
        await checkpoint()
        return tuple(self._infos.get(topic, ()))

    async def subscribers(self, topic: str) -> int:
        """See :meth:`PresenceLog.subscribers`."""
        await checkpoint()
        return self._subscribers.get(topic, 0)

    def follow(self, topic: str) -> None:
        """See :meth:`PresenceLog.follow`. They are found at once."""
        self._followed.add(topic)
        if self._found is not None:
            self._found(topic, tuple(self._infos.get(topic, ())), True)

    def unfollow(self, topic: str) -> None:
        """See :meth:`PresenceLog.unfollow`."""
        self._followed.discard(topic)

    async def broadcast(self, message: str) -> None:
        """See :meth:`PresenceLog.broadcast`."""
        await checkpoint()
        if self._received is not None:
            self._received(message)

    async def leave(self, seconds: float) -> None:
        """See :meth:`PresenceLog.leave`. Nobody is left who could ask."""
        self._subscribers.clear()
        self._infos.clear()
