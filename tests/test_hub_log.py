"""The contract of logs, kept by the one in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from sse_asgi.hub import Log, MemoryLog
from sse_asgi.testing import LogContract


@pytest.mark.anyio
class TestMemoryLog(LogContract):
    @asynccontextmanager
    async def make_log(self, *, max_events: int, max_bytes: int) -> AsyncGenerator[Log, None]:
        yield MemoryLog(max_events, max_bytes)


@pytest.mark.anyio
async def test_the_contract_without_pytest() -> None:
    """It runs all its tests, and the first that fails is seen."""
    seen: list[int] = []

    class Forgetful(TestMemoryLog):
        @asynccontextmanager
        async def make_log(self, *, max_events: int, max_bytes: int) -> AsyncGenerator[Log, None]:
            seen.append(max_events)
            yield MemoryLog(1, max_bytes)

    await TestMemoryLog().run()
    with pytest.raises(AssertionError):
        await Forgetful().run()
    assert seen
