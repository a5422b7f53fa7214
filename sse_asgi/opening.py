"""A source that a factory is still making: the function is awaited while the client is watched."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from .source import discard, open_source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .source import OpenSource
    from .types import FrameReceiver

__all__ = ["Opening"]


class Opening:
    """What a factory has returned, if that has to be awaited.

    It is opened in the task of the stream, before the first step. Once it is open, it is the source
    that the awaitable has returned.
    """

    __slots__ = ("_awaitable", "_made", "_source")

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self._awaitable: Awaitable[Any] | None = awaitable
        self._made: object = None
        self._source: OpenSource | None = None

    async def open(self) -> None:
        """Await the source, and open it.

        :raises TypeError: it is no source.
        :raises HTTPError: 503, if all threads for sync iterables are busy.
        """
        awaitable, self._awaitable = self._awaitable, None
        assert awaitable is not None
        self._made = await awaitable
        self._source = open_source(self._made)

    @property
    def step(self) -> Callable[[], Awaitable[Any]]:
        """The method of the source, which is open."""
        assert self._source is not None
        return self._source.step

    @property
    def iterator(self) -> object:
        """What is stepped, to name it in a message, or what is awaited."""
        return self._awaitable if self._source is None else self._source.iterator

    def give_to(self, receiver: FrameReceiver) -> None:
        """Let the source give its events, if it is open and can."""
        if self._source is not None:
            self._source.give_to(receiver)

    async def aclose(self) -> None:
        """Close the source. What was never awaited does not begin."""
        if self._source is not None:
            await self._source.aclose()
        elif inspect.iscoroutine(self._awaitable):
            self._awaitable.close()
        else:
            await discard(self._made, None)
