"""Positions in logs, and the event ids that stand for them. Pure, no I/O.

The id of an event is its position, ``<epoch>-<offset>``. In a log that can lose its newest events
it also has a check, ``<epoch>_<check>-<offset>``. A subscription to several topics puts its
positions in all of them into the id, with dots between them. Their order does not matter, because
no two logs have the same epoch. In a topic that does not exist, the position is a moment: see
:class:`~sse_asgi.hub.Absence`. A client may send any text as an id, so :func:`parse` checks the
form strictly.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MAX_ID_LENGTH", "MAX_TOPICS", "Position", "join", "new_epoch", "parse", "text_of"]

#: The longest id, in characters. The client sends it back as a header field; servers and proxies
#: accept about 8 KiB for all header fields together.
MAX_ID_LENGTH = 2048

#: How many topics fit into an id. Each takes an epoch, maybe a check, an offset, and a dot.
MAX_TOPICS = MAX_ID_LENGTH // 30

#: Ends an id that has no room for the positions in all topics.
_MORE = "+"

_POSITION = re.compile(r"([0-9a-z]{1,32})(?:_([0-9a-z]{1,8}))?-(0|[1-9][0-9]{0,15})", re.ASCII)


class Position(NamedTuple):
    """How far a client has read a log, or how far a log reaches: the newest event."""

    #: The epoch of the log: 1 to 32 lower-case letters and digits.
    epoch: str
    #: The offset of the event. The first event of an epoch has 1; 0 is before the first event.
    offset: int
    #: Tells this event, and all before it, from others that may come into their places if the log
    #: loses them: up to 8 lower-case letters and digits. Empty: not known, or the log needs none.
    check: str = ""

    def __str__(self) -> str:
        return text_of(self.epoch, self.offset, self.check)


def text_of(epoch: str, offset: int, check: str) -> str:
    """Return the text of a position."""
    return f"{epoch}{check and '_'}{check}-{offset}"


def new_epoch() -> str:
    """Return an epoch that no other log has had."""
    return os.urandom(6).hex()


def join(positions: Iterable[Position]) -> str:
    """Return the id for some positions.

    If it would be too long, it has only the first of them.
    """
    text = ""
    for position in positions:
        part = f".{position}" if text else str(position)
        if len(text) + len(part) >= MAX_ID_LENGTH:
            return text + _MORE
        text += part
    return text


def parse(text: str) -> dict[str, Position] | None:
    """Return the positions in an id, by epoch, or ``None`` if it is not the id of a hub.

    If the id had no room for all positions, one more epoch is returned, which no log has.
    """
    if len(text) > MAX_ID_LENGTH:
        return None
    positions = {_MORE: Position(_MORE, 0)} if text.endswith(_MORE) else {}
    for part in text.removesuffix(_MORE).split("."):
        found = _POSITION.fullmatch(part)
        if found is None or found[1] in positions:
            return None
        offset = int(found[3])
        check = found[2] or "" if offset else ""  # before the first event there is none
        positions[found[1]] = Position(found[1], offset, check)
    return positions
