"""Why a stream has ended, and the report about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["CloseReason", "CloseReport"]


class CloseReason(str, Enum):
    """The reason why a stream has ended."""

    FINISHED = "finished"  #: the source has ended
    CLIENT_DISCONNECTED = "client_disconnected"  #: the client has left
    SHUTDOWN = "shutdown"  #: the server or the application is stopping
    SEND_TIMEOUT = "send_timeout"  #: the client has stopped reading
    #: the stream has reached its ``max_lifetime`` or has expired, or ``recheck`` has ended it
    MAX_LIFETIME = "max_lifetime"
    ERROR = "error"  #: the source, or a function of the application, has raised
    CANCELLED = "cancelled"  #: the server, or a scope around the application, cancelled it


@dataclass(frozen=True)
class CloseReport:
    """The argument of ``on_close``.

    :param reason: why the stream has ended.
    :param events: how many events were sent, without pings.
    :param bytes: how many bytes of the body were sent.
    :param duration: how long the stream was open, in seconds.
    :param error: the exception, if the reason is ``ERROR``.
    """

    reason: CloseReason
    events: int
    bytes: int
    duration: float
    error: BaseException | None = None
