"""What a subscription gets after it was closed: what was published until then, and a last event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import HubError
from .channel import BATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .channel import Cursor
    from .log import Log, Page

__all__ = ["Rest"]


class Rest:
    """The rest of the events of some topics, as frames, and a last event.

    :param cursors: how far each topic was read.
    :param take: moves a cursor past the events of a page, and returns their frames, if any.
    :param ends_at_gap: whether nothing but the last event comes after events that are missing.
    :param last: the frame of the last event.
    """

    __slots__ = ("_cursors", "_ends_at_gap", "_last", "_log", "_take", "_until")

    def __init__(
        self,
        log: Log,
        cursors: Iterable[Cursor],
        take: Callable[[Cursor, Page], bytes | None],
        last: bytes,
        ends_at_gap: bool,
    ) -> None:
        self._log = log
        self._cursors = [cursor for cursor in cursors if cursor.epoch]
        self._take = take
        self._ends_at_gap = ends_at_gap
        self._last: bytes | None = last
        # Where the log of the first of the topics ended when it was read first.
        self._until: int | None = None

    async def next(self) -> bytes | None:
        """Return the next frame; ``None``: that was all.

        If the log can't be reached, the last event comes without the others.
        """
        while self._cursors:
            cursor = self._cursors[0]
            page: Page | None
            try:
                page = await self._log.read(cursor.topic, cursor.offset, BATCH)
            except HubError:
                page = None
            if page is not None and cursor.begin(page):
                if page.absent:
                    del self._cursors[0]
                continue
            if page is None or (self._ends_at_gap and not cursor.continues(page)):
                self._cursors.clear()
                break
            until = self._until = page.last if self._until is None else min(self._until, page.last)
            frame = self._take(cursor, page)
            if cursor.offset >= until:
                del self._cursors[0]
                self._until = None
            if frame is not None:
                return frame
        last, self._last = self._last, None
        return last
