"""What other threads than that of the event loop ask of a hub."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .arguments import checked_body
from .many import as_lists

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..types import EventLike
    from .affinity import Affinity

__all__ = ["FromThreads"]


class FromThreads:
    """The methods of a hub for other threads."""

    _affinity: Affinity

    async def publish(
        self,
        topic: str,
        event: EventLike,
        *,
        key: str | None = None,
        collapse_key: str | None = None,
        final: bool = False,
    ) -> str:
        """See :meth:`Hub.publish`."""
        raise NotImplementedError

    async def publish_many(
        self,
        topic: str,
        events: Iterable[EventLike],
        *,
        keys: Iterable[str | None] | None = None,
        collapse_keys: Iterable[str | None] | None = None,
    ) -> list[str]:
        """See :meth:`Hub.publish_many`."""
        raise NotImplementedError

    def publish_from_thread(
        self,
        topic: str,
        event: EventLike,
        *,
        key: str | None = None,
        collapse_key: str | None = None,
        final: bool = False,
    ) -> str:
        """Call :meth:`publish` from another thread than that of the event loop, and wait for it.

        :raises RuntimeError: this is the thread of the event loop, which can't wait for itself.
        :raises HubClosedError: the hub has not been used in an event loop yet, or that loop is
            closed.
        """
        checked_body(topic, event, key, collapse_key)  # so that a bad event fails here
        publish = partial(
            self.publish, topic, event, key=key, collapse_key=collapse_key, final=final
        )
        return self._affinity.run_from_thread(publish)

    def publish_many_from_thread(
        self,
        topic: str,
        events: Iterable[EventLike],
        *,
        keys: Iterable[str | None] | None = None,
        collapse_keys: Iterable[str | None] | None = None,
    ) -> list[str]:
        """Call :meth:`publish_many` from another thread, as :meth:`publish_from_thread` does."""
        events, keys, collapse_keys = as_lists(events, keys, collapse_keys)  # iterated over here
        publish = partial(self.publish_many, topic, events, keys=keys, collapse_keys=collapse_keys)
        return self._affinity.run_from_thread(publish)
