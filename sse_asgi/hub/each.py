"""What one subscriber gets in the place of an event. Pure, no I/O."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from ..decoder import EventStreamDecoder
from ..event import ServerSentEvent
from .body import body_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..types import EventLike

__all__ = ["changed"]


def changed(body: bytes, each: Callable[[ServerSentEvent[str]], EventLike | None]) -> bytes | None:
    """Return the frame of what a function makes of an event; ``None``: nothing.

    What the function returns unchanged keeps its frame. An event without data is none for any
    client, and passes.

    :param body: the frame of the event, without the id.
    :raises Exception: what the function raises; what it returns is no event-like, or has an id.
    """
    event = _event_of(body)
    if event is None:
        return body
    made = each(event)
    if made is event:
        return body
    return None if made is None else body_of(made)


@lru_cache(maxsize=16)  # all subscribers get the same event one after another
def _event_of(body: bytes) -> ServerSentEvent[str] | None:
    for event in EventStreamDecoder(max_event_size=len(body) + 1).feed(body):
        return ServerSentEvent(event.data, event=None if event.event == "message" else event.event)
    return None
