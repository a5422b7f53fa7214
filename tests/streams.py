"""Sources and helpers that several test modules use."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio
import trio
from trio.testing import MockClock

from sse_asgi import CloseReport


def on_mock_clock(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run a test on trio with a clock that jumps to the next deadline: exact and instant."""

    @functools.wraps(test)
    def run() -> None:
        trio.run(test, clock=MockClock(autojump_threshold=0))

    # pytest must see a function without parameters, not the one that is wrapped.
    del run.__wrapped__
    return run


class Recorder:
    """A source that notes when its cleanup began and when it ended, and every report."""

    def __init__(self) -> None:
        self.cleanup_began = False
        self.closed = False
        self.reports: list[CloseReport] = []

    @property
    def report(self) -> CloseReport:
        (report,) = self.reports
        return report

    async def source(self, *events: Any, cleanup: float = 0.0) -> AsyncIterator[Any]:
        """Yield ``events``, then wait for ever; take ``cleanup`` seconds to close."""
        try:
            for event in events:
                yield event
            await anyio.sleep_forever()
        finally:
            self.cleanup_began = True
            await anyio.sleep(cleanup)
            self.closed = True

    def on_close(self, report: CloseReport) -> None:
        self.reports.append(report)


def http_scope(**changes: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [],
        **changes,
    }


async def never() -> Any:
    """A ``receive()`` that has nothing to say."""
    await anyio.sleep_forever()


@dataclass
class Stopping:
    """Says whether a server was told to stop."""

    signalled: bool = False

    def listen(self, listener: object, runtime: None = None, *, at_once: bool = False) -> None: ...

    def forget(self, listener: object) -> None: ...
