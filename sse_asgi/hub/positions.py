"""Positions in logs, and the event ids that stand for them. Pure, no I/O.

The id of an event is its position, ``<epoch>-<offset>``. A subscription to several topics puts its
positions in all of them into the id, ``<epoch>-<offset>.<epoch>-<offset>``. Their order does not
matter, because no two logs have the same epoch. A client may send any text as an id, so
:func:`parse` checks the form strictly.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MAX_ID_LENGTH", "MAX_TOPICS", "Position", "join", "new_epoch", "parse"]

#: The longest id, in characters. The client sends it back as a header field; servers and proxies
#: accept about 8 KiB for all header fields together.
MAX_ID_LENGTH = 2048

#: How many topics fit into an id. Each takes an epoch, a hyphen, an offset, and a dot.
MAX_TOPICS = MAX_ID_LENGTH // (12 + 1 + 16 + 1)

#: Ends an id that has no room for the positions in all topics.
_MORE = "+"

_POSITION = re.compile(r"([0-9a-z]{1,32})-(0|[1-9][0-9]{0,15})", re.ASCII)


class Position(NamedTuple):
    """How far a client has read a log, or how far a log reaches: the newest event."""

    #: The epoch of the log: 1 to 32 lower-case letters and digits.
    epoch: str
    #: The offset of the event. The first event of an epoch has 1; 0 is before the first event.
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"


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


def parse(text: str) -> dict[str, int] | None:
    """Return the offsets in an id, by epoch, or ``None`` if it is not the id of a hub.

    If the id had no room for all positions, one more epoch is returned, which no log has.
    """
    if len(text) > MAX_ID_LENGTH:
        return None
    offsets = {_MORE: 0} if text.endswith(_MORE) else {}
    for part in text.removesuffix(_MORE).split("."):
        found = _POSITION.fullmatch(part)
        if found is None or found[1] in offsets:
            return None
        offsets[found[1]] = int(found[2])
    return offsets
