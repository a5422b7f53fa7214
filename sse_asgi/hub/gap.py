"""The event that tells a client that events are missing."""

from __future__ import annotations

from typing import Any

from ..encoder import encode

__all__ = ["gap_frame"]

#: How many characters of the id of the client a gap event repeats.
SHOWN = 64


def gap_frame(name: str, after: str, position: str, missed: int | None, topic: str | None) -> bytes:
    """Return the frame of a gap event: see ``gap_event`` of :class:`Hub`.

    :param after: the id after which events are missing.
    :param position: the id from which on there are events; empty: there is none.
    :param missed: how many are missing, if that is known.
    :param topic: the topic, if the subscription has several.
    """
    data: dict[str, Any] = {
        "after": after[:SHOWN], "position": position or None, "missed": missed,
    }  # fmt: skip
    if topic is not None:
        data["topic"] = topic
    return encode({"event": name, "id": position or None, "data": data})
