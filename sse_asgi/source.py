"""One interface to every source, async or sync: to step it, and to close it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from .threads import YIELDS_IN_CLEANUP, ThreadSource, close_in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .types import EventLike, FrameReceiver

__all__ = [
    "YIELDS_IN_CLEANUP",
    "AsyncSource",
    "check_source",
    "discard",
    "open_source",
]


logger: logging.Logger = logging.getLogger("sse_asgi")


class OpenSource(Protocol):
    """A source that is being read."""

    @property
    def step(self) -> Callable[[], Awaitable[EventLike]]:
        """Return an awaitable of the next event. At the end it raises ``StopAsyncIteration``."""
        ...

    @property
    def iterator(self) -> object:
        """What is stepped, to name it in a message."""
        ...

    def give_to(self, receiver: FrameReceiver) -> None:
        """Let the source give ``receiver`` the events that come while a step waits, if it can."""
        ...

    async def aclose(self) -> None:
        """Close the source. This raises what its cleanup raises."""
        ...


def open_source(source: object) -> OpenSource:
    """Open ``source`` for reading.

    :raises TypeError: if it is not an iterable of events.
    :raises HTTPError: 503, if all threads for sync iterables are busy.
    """
    if isinstance(source, AsyncIterable):
        return AsyncSource(source)
    return ThreadSource(check_source(source))


def check_source(source: Any) -> Any:
    """Return ``source`` untouched, if it can be a source.

    :raises TypeError: if it is not an iterable of events.
    """
    if not isinstance(source, AsyncIterable) and (
        isinstance(source, (str, bytes, dict)) or not isinstance(source, Iterable)
    ):
        hint = ""
        if hasattr(source, "__await__"):
            hint = "; await it first"
        elif callable(source):
            hint = "; call it first"
        raise TypeError(
            "a source must be an async iterable or an iterable of events, not "
            f"{type(source).__name__}: {source!r:.80}{hint}"
        )
    return source


async def discard(source: object, timeout: float | None) -> None:
    """Close a source that will not be read.

    :param timeout: how long that may take, in seconds; ``None``: no limit.
    """
    with anyio.move_on_after(timeout, shield=True) as scope:
        if (aclose := getattr(source, "aclose", None)) is not None:
            await aclose()
        else:
            await close_in_thread(source)
    if scope.cancelled_caught:
        logger.warning("the source was not closed within cleanup_timeout=%s s", timeout)


class AsyncSource:
    """An async iterable. Its code runs in the task of the stream."""

    __slots__ = ("iterator", "step")

    def __init__(self, source: AsyncIterable[EventLike]) -> None:
        self.iterator: AsyncIterator[EventLike] = aiter(source)
        # The iterator's own method: a wrapper would cost time for each event.
        self.step: Any = self.iterator.__anext__

    def give_to(self, receiver: FrameReceiver) -> None:
        """Let the iterator give events to ``receiver``, if it is a subscription."""
        give_to = getattr(self.iterator, "give_to", None)
        if give_to is not None:
            give_to(receiver)

    async def aclose(self) -> None:
        """Close the iterator, if it can be closed."""
        aclose = getattr(self.iterator, "aclose", None)
        if aclose is not None:
            await aclose()
