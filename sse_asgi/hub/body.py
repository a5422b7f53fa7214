"""The frame of an event as a log keeps it: without an id, which the hub gives. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..decoder import EventStreamDecoder
from ..encoder import encode

if TYPE_CHECKING:
    from ..types import EventLike

__all__ = ["body_of"]

_THE_HUB_GIVES = "the hub gives the ids: publish the event without its id"

#: No id of a stream, since an id has no NUL (WHATWG HTML 9.2.6).
_NO_ID = "\0"


def body_of(event: EventLike) -> bytes:
    """Return the frame of an event, which must not have an id.

    ``bytes`` are one whole frame of another encoder: it is decoded first, so that the log has the
    same bytes for the same event.

    :raises TypeError: it is not an event-like.
    :raises ValueError: it has an id, or can't be encoded; ``bytes`` are not one whole event.
    """
    if isinstance(event, bytes):
        return encode(_decoded(encode(event)))
    own = event.get("id") if isinstance(event, Mapping) else getattr(event, "id", None)
    if own is not None:
        raise ValueError(f"{_THE_HUB_GIVES}, {own!r:.80}")
    return encode(event)


def _decoded(frame: bytes) -> dict[str, Any]:
    frame.decode()  # raises where the decoder would put U+FFFD
    comments: list[str] = []
    decoder = EventStreamDecoder(
        max_event_size=len(frame) + 1, on_comment=comments.append, last_event_id=_NO_ID
    )
    events = decoder.feed(frame)
    if decoder.last_event_id != _NO_ID:
        raise ValueError(f"{_THE_HUB_GIVES}, {decoder.last_event_id!r:.80}")
    if len(events) != 1:
        raise ValueError(
            f"publish one event at a time, with data: these bytes have {len(events)}: {frame!r:.80}"
        )
    (event,) = events
    return {
        "data": event.data,
        "event": None if event.event == "message" else event.event,
        "retry": decoder.reconnection_time,
        "comment": "\n".join(comments) if comments else None,
    }
