"""A source that has to be awaited before the response starts, while the client is watched.

A factory may still be making it. Or it is a subscription of a hub, which looks whether there is
something for the client, and raises :class:`~sse_asgi.HTTPError` if not.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from .source import discard, open_source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .source import OpenSource
    from .types import FrameReceiver

__all__ = ["Opening", "opened"]


def opened(source: Any) -> OpenSource | Opening:
    """Open a source, or return what has to be awaited first.

    :raises TypeError: it is no source.
    :raises HTTPError: 503, if all threads for sync iterables are busy.
    """
    before = _before_start(source)
    return open_source(source) if before is None else Opening(before, source)


def _before_start(source: Any) -> Awaitable[object] | None:
    # Of its class: a mock has an attribute of every name.
    before_start = getattr(type(source), "_sse_asgi_before_start", None)
    return None if before_start is None else before_start(source)


class Opening:
    """What has to be awaited before there is a source.

    It is opened in the task of the stream, before the first step. Once it is open, it is the source
    that the awaitable has returned.

    :param made: the source, if it is there and only has to be waited for.
    """

    __slots__ = ("_awaitable", "_made", "_source")

    def __init__(self, awaitable: Awaitable[Any], made: object = None) -> None:
        self._awaitable: Awaitable[Any] | None = awaitable
        self._made: object = made
        self._source: OpenSource | None = None

    async def open(self) -> None:
        """Await the source, and open it.

        :raises TypeError: it is no source.
        :raises HTTPError: 503, if all threads for sync iterables are busy; or what the source
            raises.
        """
        awaitable, self._awaitable = self._awaitable, None
        assert awaitable is not None
        made = await awaitable
        if self._made is None:  # else it was there, and had only to be waited for
            self._made = made
            if (before := _before_start(self._made)) is not None:
                await before
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
            return
        if inspect.iscoroutine(self._awaitable):
            self._awaitable.close()
        if self._made is not None:
            await discard(self._made, None)
