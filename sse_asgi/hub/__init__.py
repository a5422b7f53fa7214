"""Publish and subscribe, with replay after ``Last-Event-ID``."""

from ..errors import (
    EventTooLargeError,
    HubClosedError,
    HubError,
    TopicEndedError,
    TopicRunningError,
)
from .health import health_app
from .hub import Hub
from .log import Absence, BatchLog, Log, NewRecord, Page, Record
from .memory import MemoryLog
from .place_log import PlaceLog
from .positions import Position
from .presence_events import PresenceEvents
from .presence_log import PresenceLog
from .remote_log import RemoteLog
from .run import Run
from .run_log import RunLog
from .subscription import Subscription

__all__ = [
    "Absence",
    "BatchLog",
    "EventTooLargeError",
    "Hub",
    "HubClosedError",
    "HubError",
    "Log",
    "MemoryLog",
    "NewRecord",
    "Page",
    "PlaceLog",
    "Position",
    "PresenceEvents",
    "PresenceLog",
    "Record",
    "RemoteLog",
    "Run",
    "RunLog",
    "Subscription",
    "TopicEndedError",
    "TopicRunningError",
    "health_app",
]
