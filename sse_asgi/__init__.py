"""Server-Sent Events for any ASGI application."""

from .app import SSEApp, sse_app
from .errors import (
    ClientDisconnectedError,
    EventTooLargeError,
    HTTPError,
    HubClosedError,
    HubError,
    SSEError,
    TopicEndedError,
    TopicRunningError,
)
from .event import JSONServerSentEvent, ServerSentEvent
from .limits import Limit
from .observer import HubStats, Observer, StreamStats
from .options import StreamOptions
from .reasons import CloseReason, CloseReport
from .relaying import relay
from .request import SSERequest
from .shutdown import Shutdown
from .tally import Tally
from .threads import current_thread_limiter

__all__ = [
    "ClientDisconnectedError",
    "CloseReason",
    "CloseReport",
    "EventTooLargeError",
    "HTTPError",
    "HubClosedError",
    "HubError",
    "HubStats",
    "JSONServerSentEvent",
    "Limit",
    "Observer",
    "SSEApp",
    "SSEError",
    "SSERequest",
    "ServerSentEvent",
    "Shutdown",
    "StreamOptions",
    "StreamStats",
    "Tally",
    "TopicEndedError",
    "TopicRunningError",
    "current_thread_limiter",
    "relay",
    "sse_app",
]

__version__ = "0.1.0"
