"""What the streams of this program have done since it started."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sse_asgi import CloseReport

__all__ = ["Figures"]


class Figures:
    """Counts what streams do. The page gets what :meth:`read` returns, and nothing else."""

    def __init__(self) -> None:
        self._open = 0
        self._events = 0
        self._bytes = 0
        self._ended: Counter[str] = Counter()

    def opened(self) -> None:
        """Count a stream whose source has begun."""
        self._open += 1

    def closed(self) -> None:
        """Count a stream whose source has ended."""
        self._open -= 1

    def sent(self, frame: bytes) -> None:
        """Count the events of a frame."""
        self._events += frame.count(b"\n\n")  # within an event there is no blank line
        self._bytes += len(frame)

    def ended(self, report: CloseReport) -> None:
        """Count why a stream has ended: the ``on_close`` of an application."""
        self._ended[report.reason.value] += 1

    def read(self) -> dict[str, Any]:
        """Return the figures, in values that JSON has."""
        return {
            "open": self._open,
            "events": self._events,
            "bytes": self._bytes,
            "ended": dict(self._ended),
        }
