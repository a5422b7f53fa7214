"""The exceptions that sse_asgi defines. All are subclasses of :class:`SSEError`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "ClientDisconnectedError",
    "EventTooLargeError",
    "HTTPError",
    "HubClosedError",
    "HubError",
    "SSEError",
    "TopicEndedError",
    "TopicRunningError",
]

#: In bytes. This is the limit of the websockets library for a message. An event is the same kind
#: of thing: what can be sent as one should pass as the other.
DEFAULT_MAX_EVENT_SIZE = 2**20


def unavailable(detail: str, status_code: int = 503) -> HTTPError:
    """Return the answer to a request that may be repeated in some seconds, with Retry-After."""
    return HTTPError(status_code, detail, {"retry-after": "5"})


def is_status(error: BaseException) -> bool:
    """Return whether an exception stands for a status, ours or that of a framework."""
    return isinstance(error, HTTPError) or (
        isinstance(getattr(error, "status_code", None), int)
        and any(kind.__name__ == "HTTPException" for kind in type(error).__mro__)
    )


def as_answer(error: Any) -> HTTPError | None:
    """Return the answer that an exception of a framework stands for, or ``None``."""
    if not is_status(error) or not 200 <= error.status_code <= 599:
        return None
    detail = getattr(error, "detail", None)
    headers = getattr(error, "headers", None)
    return HTTPError(
        error.status_code,
        detail if isinstance(detail, str) else None,
        headers if isinstance(headers, Mapping) else None,
    )


class SSEError(Exception):
    """The base class of every exception that this package defines."""


class ClientDisconnectedError(SSEError):
    """The client has left before the body of its request was complete."""


class EventTooLargeError(SSEError, ValueError):
    """An event is larger than the limit of a decoder, or of a hub."""


class HubError(SSEError):
    """A hub can't do what it was asked to do."""


class HubClosedError(HubError):
    """A hub is closed, or not open yet."""


class TopicEndedError(HubError):
    """An event is published to a topic that has ended: its newest event was the final one."""


class TopicRunningError(HubError):
    """A run is to begin in a topic that has one, or to go on in a topic where it has no place."""


class HTTPError(SSEError):
    """An HTTP status that answers the request instead of an event stream.

    Raise it in the factory, or in the source before the response has started. A client that
    gets 204 (No Content) does not reconnect (WHATWG HTML 9.2.3).

    :param status_code: 200 to 599.
    :param detail: the body, sent as ``text/plain``; by default the phrase of the status. It is not
        sent with 204 and 304, which have no body (RFC 9110, 6.4.1).
    :param headers: header fields to send, such as ``Retry-After`` or ``Location``.
    :raises ValueError: for a ``status_code`` that is not an ``int`` in this range.
    :raises TypeError: for a ``detail`` that is not a ``str``.
    """

    def __init__(
        self,
        status_code: int,
        detail: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(status_code, int) or not 200 <= status_code <= 599:
            raise ValueError(f"status_code must be an int from 200 to 599, not {status_code!r}")
        if detail is None:
            try:
                from http import HTTPStatus  # slow to import, and few ask

                detail = HTTPStatus(status_code).phrase
            except ValueError:  # a status of the application's own, such as 499
                detail = ""
        if not isinstance(detail, str):
            raise TypeError(f"detail must be a str or None, not {detail!r}")
        super().__init__(status_code, detail)
        self.status_code: int = int(status_code)
        self.detail: str = detail
        self.headers: dict[str, str] = dict(headers or {})

    def __str__(self) -> str:
        return f"{self.status_code} {self.detail}".rstrip()
