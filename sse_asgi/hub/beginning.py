"""Where a subscription begins in its topics."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from .log import Page
from .positions import parse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from .channel import Cursor
    from .positions import Position

__all__ = ["Beginning", "Found", "Start"]


class Start(NamedTuple):
    """Where a subscription begins in a topic."""

    #: The end of the log when the subscription was made; ``None``: the end when it is first read.
    position: Position | None = None
    #: How many events before that end; fewer if the log does not have so many.
    history: int = 0
    #: Whether to begin after the position in the id that the client has sent.
    resumed: bool = False
    #: Whether to begin with the first event of the epoch.
    oldest: bool = False


#: A cursor, where it begins, and how far the log of its topic reaches.
Found: TypeAlias = "tuple[Cursor, Start, Page]"

#: Reads the log of a topic after an offset, up to so many bytes.
Read: TypeAlias = "Callable[[Cursor, int | None, int], Awaitable[Page | None]]"

_NO_STARTS: Mapping[str, Start] = MappingProxyType({})


class Beginning:
    """The state of a subscription until it has a position in each topic.

    :param topics: its topics, without patterns.
    :param last_event_id: the id that the client has sent; ``None``: it has sent none.
    :param starts: where to begin in each topic that is known.
    :param matching: where to begin in topics that match a pattern and have to be looked up;
        ``None``: there are no patterns.
    """

    __slots__ = (
        "_may_look", "_may_name_gone", "_positions", "_topics", "entered", "last_event_id",
        "matching", "starts", "unsettled",
    )  # fmt: skip

    def __init__(
        self,
        topics: Sequence[str],
        last_event_id: str | None,
        starts: Mapping[str, Start] = _NO_STARTS,
        matching: Start | None = None,
    ) -> None:
        self._topics = topics
        self.last_event_id: str | None = last_event_id
        self._positions = None if last_event_id is None else parse(last_event_id)
        # With a pattern, the id may have positions in topics that no longer exist.
        self._may_name_gone = last_event_id is not None and matching is not None
        self._may_look = self._may_name_gone
        self.starts: Mapping[str, Start] = starts
        self.matching: Start | None = matching
        #: Whether the subscription has entered its topics.
        self.entered: bool = False
        #: The cursors that have no position yet.
        self.unsettled: list[tuple[Cursor, Start]] = []

    def at_hand(self, cursor: Cursor, start: Start) -> Page | None:
        """Return how far the log reaches if the window has all events after the id.

        Then the log need not be read.
        """
        window = cursor.channel.window
        if window is None or not start.resumed or self._positions is None:
            return None
        given = self._positions.get(window.epoch)
        if given is None or not window.first - 1 <= given.offset <= window.last:
            return None
        check = window.check(given.offset)
        if check is None:
            return None
        checks = {given.offset: check}
        return Page(window.epoch, window.first, window.last, (), checks, window.ended)

    async def pages(self, read: Read) -> list[Found] | None:
        """Return how far the logs reach of the topics in which there is no position yet.

        :param read: reads a log; ``None``: the subscription is closed.
        """
        found: list[Found] = []
        for cursor, start in tuple(self.unsettled):
            page = await self._page(cursor, start, read)
            if page is None:
                return None
            found.append((cursor, start, page))
        return found

    async def _page(self, cursor: Cursor, start: Start, read: Read) -> Page | None:
        """Return how far the log of a topic reaches, and what it needs to compare the check."""
        page = self.at_hand(cursor, start) or await read(cursor, None, 0)
        window = cursor.channel.window
        if page is None or window is None:
            return page
        given = (self._positions or {}).get(page.epoch)
        if given is None or not given.check or given.offset in page.checks:
            return page
        # Else the log is read later, after the events in the window.
        is_in_window = window.first - 1 <= given.offset <= page.last
        return await read(cursor, given.offset, 0) if is_in_window else page

    def looks_again(self, found: Sequence[Found]) -> bool:
        """Return whether the log has to look for topics again, once, before cursors are placed.

        The id has positions in topics that were not found, and one of them may be new: another node
        knows of it, and this one does not yet.
        """
        looks = self._may_look and self._positions is not None and self._has_unknown(found)
        self._may_look = False
        return looks

    def _has_unknown(self, found: Sequence[Found]) -> bool:
        """Return whether the id has positions in topics that were not found."""
        known = {page.epoch for _, _, page in found}
        known |= {page.absence.epoch for _, _, page in found if page.absence is not None}
        return self._positions is None or not self._positions.keys() <= known

    def settle(self, found: Sequence[Found]) -> tuple[list[tuple[Cursor, Page]], bool]:
        """Give cursors their positions.

        :param found: the first of the cursors that have none, in order.
        :returns: the cursors that miss events, with how far their logs reach; and whether the id
            has positions in topics that no longer exist.
        """
        del self.unsettled[: len(found)]
        unknown = self._has_unknown(found)
        for cursor, start, page in found:
            self._place(cursor, start, page, unknown)
        missing = [(cursor, page) for cursor, _, page in found if not cursor.continues(page)]
        for cursor, _, page in found:
            at_end = cursor.offset == page.last and cursor.continues(page)
            cursor.has_ended = page.ended and at_end
        gone = self._may_name_gone and unknown
        self._may_name_gone = False
        return missing, gone

    def _place(self, cursor: Cursor, start: Start, page: Page, unknown: bool) -> None:
        """Give a cursor its position.

        :param unknown: whether the id has positions in logs that were not found.
        """
        absent = "" if page.absence is None else page.absence.epoch
        positions = self._positions or {}
        # Also if this process has learned only now that there is such a topic.
        if (given := positions.get(page.epoch) or positions.get(absent)) is not None:
            cursor.move(given)
            cursor.begin(page)
        elif start.resumed:
            if not unknown and cursor.topic not in self._topics:
                cursor.move(page.beginning)  # matches a pattern, and is new to the client
        elif start.oldest:
            cursor.move(page.beginning)
        else:
            end = start.position or page.end
            oldest = page.first - 1 if end.epoch == page.epoch else 0
            cursor.move(end)
            if not cursor.begin(page) and start.history:
                cursor.offset = max(end.offset - start.history, min(oldest, end.offset))
                cursor.check = page.checks.get(cursor.offset, "")
