"""The tests of the contract of places, for the logs that count the streams of all nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from .follower import Follower

__all__ = ["PlaceContract"]


class PlaceContract:
    """The part of :class:`LogContract` about places. A log without them passes."""

    def _open(self) -> AbstractAsyncContextManager[list[Follower]]:
        raise NotImplementedError

    async def _soon(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        raise NotImplementedError

    async def test_places_are_those_of_all_nodes(self) -> None:
        """Of many that take one at the same time, as many get one as there are."""
        async with self._open() as nodes:
            logs: list[Any] = [getattr(node.log, "places", None) for node in nodes]
            if logs[0] is None:
                return
            holders: list[tuple[Any, str]] = []

            async def take(log: Any) -> None:
                if (place := await log.take("a:1", 5)) is not None:
                    holders.append((log, place))

            async with anyio.create_task_group() as tasks:
                for number in range(40):
                    tasks.start_soon(take, logs[number % len(logs)])
            assert len(holders) == 5, "more places were taken than there are, or fewer"
            assert await logs[0].take("a:2", 1), "places for something else are not counted apart"
            for log in logs:
                assert await log.take("a:1", 5) is None, "one place more than there are"
            log, place = holders.pop()
            log.give_back("a:1", place)

            async def is_free() -> bool:
                return await logs[-1].take("a:1", 5) is not None

            await self._soon(is_free, "a place was given back, and is not free")
