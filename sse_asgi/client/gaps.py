"""See what a hub of this library says of events that are missing. Pure, no I/O."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .errors import GapError

if TYPE_CHECKING:
    from ..decoder import DecodedEvent

__all__ = ["gap_of"]


def gap_of(event: DecodedEvent) -> GapError | None:
    """Return the gap that a gap event of a hub reports, as an error, or ``None`` for another event.

    :param event: an event that a client has received.
    """
    try:
        data: Any = json.loads(event.data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    match data:
        case {
            "after": str(after),
            "position": str() | None as position,
            "missed": int() | None as missed,
        }:
            topic = data.get("topic")
            return GapError(after, position, missed, topic if isinstance(topic, str) else None)
    return None
