"""The types of ASGI, and of what a source may yield."""

from __future__ import annotations

from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    MutableMapping,
)
from typing import Any, Protocol, TypeAlias, TypedDict, runtime_checkable

__all__ = [
    "ASGIApp",
    "EventDict",
    "EventLike",
    "Factory",
    "FrameReceiver",
    "HasEventFields",
    "Headers",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "Source",
]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
#: What a server calls an application with.
Exchange: TypeAlias = tuple[Scope, Receive, Send]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class EventDict(TypedDict, total=False):
    """The fields of an event as a ``dict``: see :class:`~sse_asgi.ServerSentEvent`."""

    data: Any
    event: str | None
    id: str | int | None
    retry: int | None
    comment: str | None


@runtime_checkable
class HasEventFields(Protocol):
    """An object that has the five fields of an event as attributes."""

    @property
    def data(self) -> Any:
        """The data, before it becomes text."""
        ...

    @property
    def event(self) -> str | None:
        """The event name."""
        ...

    @property
    def id(self) -> str | int | None:
        """The event id."""
        ...

    @property
    def retry(self) -> int | None:
        """The reconnection time in milliseconds."""
        ...

    @property
    def comment(self) -> str | None:
        """The comment."""
        ...


class FrameReceiver(Protocol):
    """A receiver of the frames that come while a source's step waits. The step goes on waiting."""

    def ready(self) -> bool:
        """Return whether a frame can be accepted now."""
        ...

    def accept(self, frame: bytes) -> None:
        """Accept a frame.

        :param frame: the bytes of one event, with its blank line.
        """
        ...


#: What a source may yield: an event, a mapping of its fields, a ``str`` (the data), ``bytes``
#: (whole frames that are already encoded), or an object with the five fields as attributes.
EventLike: TypeAlias = HasEventFields | EventDict | Mapping[str, Any] | str | bytes

Source: TypeAlias = AsyncIterable[EventLike] | Iterable[EventLike]

#: A generator function, or a function that returns a source. It is called with the request, or
#: with nothing.
Factory: TypeAlias = Callable[..., Source | Awaitable[Source]]

Headers: TypeAlias = (
    Mapping[str, str]
    | Mapping[bytes, bytes]
    | Iterable[tuple[str, str]]
    | Iterable[tuple[bytes, bytes]]
)
