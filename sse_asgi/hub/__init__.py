"""Publish and subscribe, with replay after ``Last-Event-ID``."""

from ..errors import EventTooLargeError, HubClosedError, HubError, TopicEndedError
from .hub import Hub
from .log import Absence, BatchLog, Log, NewRecord, Page, Record
from .memory import MemoryLog
from .positions import Position
from .presence_events import PresenceEvents
from .presence_log import PresenceLog
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
    "Position",
    "PresenceEvents",
    "PresenceLog",
    "Record",
    "Subscription",
    "TopicEndedError",
]
