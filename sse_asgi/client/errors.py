"""What can go wrong for a client of an event stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import SSEError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ContentTypeError",
    "EventSourceError",
    "GapError",
    "IdleTimeoutError",
    "StatusError",
    "TooManyReconnectsError",
]


class EventSourceError(SSEError):
    """The base class of the errors of an :class:`EventSource`."""


class StatusError(EventSourceError):
    """The server has answered with a status other than 200 and 204.

    The standard has a client stop then (WHATWG HTML 9.2.3), and so does this one. The exceptions
    are 429 and 503 with ``Retry-After``, and what the option ``retry_on`` names.
    """

    status_code: int
    """The status of the response."""

    detail: str
    """The beginning of the response's body, at most 2,048 characters."""

    headers: Mapping[str, str]
    """The header fields of the response. Their names may be given in any case."""

    def __init__(self, status_code: int, detail: str, headers: Mapping[str, str]) -> None:
        super().__init__(status_code, detail)
        self.status_code = status_code
        self.detail = detail
        self.headers = headers

    def __str__(self) -> str:
        shown = " ".join(self.detail.split())
        return f"the server answers {self.status_code}" + (f": {shown:.200}" if shown else "")


class ContentTypeError(EventSourceError):
    """The server has answered with something that is not an event stream (WHATWG HTML 9.2.3)."""

    content_type: str | None
    """The ``Content-Type`` of the response; ``None``: it has none."""

    def __init__(self, content_type: str | None) -> None:
        super().__init__(content_type)
        self.content_type = content_type

    def __str__(self) -> str:
        given = "no Content-Type" if self.content_type is None else repr(self.content_type)
        return f"the server must answer with text/event-stream, not with {given}"


class IdleTimeoutError(EventSourceError):
    """Nothing has come for ``idle_timeout`` seconds, so the connection is taken for dead.

    It is not raised. It is the ``error`` of a :class:`StateChange`, and the cause of a
    :class:`TooManyReconnectsError`.
    """


class TooManyReconnectsError(EventSourceError):
    """All reconnects that ``max_reconnects`` allows have failed, one after another.

    The ``__cause__`` is the last failure; ``None``: the last response has ended at once.
    """


class GapError(EventSourceError):
    """A hub of this library says that events are missing (``gap="raise"``).

    The source is still open: to go on after the gap, iterate again.
    """

    after: str
    """The id after which events are missing. The hub may have shortened it."""

    position: str | None
    """The id after which the stream goes on; ``None``: there is no event yet."""

    missed: int | None
    """How many events are missing; ``None``: that is not known."""

    topic: str | None
    """The topic, if the stream has several."""

    def __init__(
        self, after: str, position: str | None, missed: int | None, topic: str | None = None
    ) -> None:
        super().__init__(after, position, missed, topic)
        self.after = after
        self.position = position
        self.missed = missed
        self.topic = topic

    def __str__(self) -> str:
        count = "an unknown number of" if self.missed is None else self.missed
        of = "" if self.topic is None else f" of {self.topic!r}"
        return f"the server has lost {count} events{of} after the id {self.after!r}"
