"""Why a stream has ended, and what is told about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["CloseReason", "CloseReport"]


class CloseReason(str, Enum):
    """Why a stream has ended."""

    FINISHED = "finished"  #: the source came to its end
    CLIENT_DISCONNECTED = "client_disconnected"  #: the client went away
    SHUTDOWN = "shutdown"  #: the server or the application is stopping
    SEND_TIMEOUT = "send_timeout"  #: the client stopped reading
    MAX_LIFETIME = "max_lifetime"  #: the stream was old enough
    ERROR = "error"  #: the source, or a function of the application's, raised
    CANCELLED = "cancelled"  #: the server, or a scope around the application, cancelled it


@dataclass(frozen=True)
class CloseReport:
    """What ``on_close`` gets.

    :param reason: why the stream has ended.
    :param events: how many events were sent; pings are none.
    :param bytes: how many bytes of body were sent.
    :param duration: how long the stream was open, in seconds.
    :param error: what the source raised, where the reason is an error.
    """

    reason: CloseReason
    events: int
    bytes: int
    duration: float
    error: BaseException | None = None
