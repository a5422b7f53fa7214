"""A client that follows an event stream for days, and connects again as a browser does.

::

    async with EventSource("https://example.org/events") as source:
        async for event in source:
            print(event.id, event.event, event.data)

It keeps to WHATWG HTML 9.2, and decodes with :mod:`sse_asgi.decoder`. It runs on asyncio and trio,
through httpx2 (the extra ``client``) or httpx.
"""

from ..decoder import DecodedEvent
from .errors import (
    ContentTypeError,
    EventSourceError,
    GapError,
    IdleTimeoutError,
    StatusError,
    TooManyReconnectsError,
)
from .gaps import gap_of
from .source import EventSource
from .states import State, StateChange
from .types import RequestHeaders

__all__ = [
    "ContentTypeError",
    "DecodedEvent",
    "EventSource",
    "EventSourceError",
    "GapError",
    "IdleTimeoutError",
    "RequestHeaders",
    "State",
    "StateChange",
    "StatusError",
    "TooManyReconnectsError",
    "gap_of",
]
