"""Positions in logs, and the event ids that stand for them. Pure, no I/O.

The id of an event is its position, ``<epoch>-<offset>``; for a subscription of several topics it is
the positions in all of them, ``<epoch>-<offset>.<epoch>-<offset>``, in any order: an epoch belongs
to one log alone. A client sends back what it likes, so ids are read with care.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MAX_ID_LENGTH", "MAX_TOPICS", "Position", "join", "new_epoch", "parse"]

#: Of an id for several topics, in characters. It comes back as a header field, of which servers
#: and proxies take 8 KiB or so, with all others.
MAX_ID_LENGTH = 2048

#: How many topics an id has room for: a position is an epoch, a hyphen, an offset, and a dot.
MAX_TOPICS = MAX_ID_LENGTH // (12 + 1 + 16 + 1)

#: Ends an id that does not say where the client is in all topics.
_MORE = "+"

_POSITION = re.compile(r"([0-9a-z]{1,32})-(0|[1-9][0-9]{0,15})", re.ASCII)


class Position(NamedTuple):
    """How far a client, or a log, has come: the last event that there was."""

    #: Says which log it is, and which life of it: lower-case letters and digits, at most 32.
    epoch: str
    #: The first event of an epoch has 1, and each one more; 0 is before the first.
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"


def new_epoch() -> str:
    """An epoch that no other log has had."""
    return os.urandom(6).hex()


def join(positions: Iterable[Position]) -> str:
    """The id that stands for several positions; the first ones, where it would get too long."""
    text = ""
    for position in positions:
        part = f".{position}" if text else str(position)
        if len(text) + len(part) >= MAX_ID_LENGTH:
            return text + _MORE
        text += part
    return text


def parse(text: str) -> dict[str, int] | None:
    """The offsets that an id stands for, by epoch; ``None`` if it is no id of a hub's.

    One that does not say all has an epoch more, which no log has.
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
