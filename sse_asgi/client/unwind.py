"""End an iterator of a response, and those within it."""

from __future__ import annotations

from typing import Any

import anyio

__all__ = ["unwind"]

#: How many chunks of an iterator that is being closed are thrown away at most.
LEFT_OVER = 20_000


async def unwind(chunks: Any) -> None:
    """End an iterator, and those within it.

    Both libraries nest asynchronous generators, and closing the outermost leaves the others to the
    garbage collector: trio warns of that, and asyncio makes a task for each. A cancellation ends
    them all.
    """
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            for _ in range(LEFT_OVER):  # of what has been received already
                await chunks.__anext__()
        except (StopAsyncIteration, Exception):  # noqa: S110  nobody reads it any more
            pass
    if hasattr(chunks, "aclose"):
        await chunks.aclose()
