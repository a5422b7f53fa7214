"""What a log tells a hub, and what it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..hub import Log, Position, Record

__all__ = ["Follower", "read_all"]


class Follower:
    """Takes the place of a hub, and records what its log tells it."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.created: list[str] = []
        self.delivered: list[tuple[str, Record]] = []
        self.renewed: list[tuple[str, Position]] = []
        log.attach(self._deliver, self.created.append, self._renew)

    def _deliver(self, topic: str, records: Sequence[Record]) -> None:
        self.delivered += [(topic, record) for record in records]

    def _renew(self, topic: str, position: Position) -> None:
        self.renewed.append((topic, position))

    def follow(self, topic: str, after: Position) -> None:
        """Follow a topic. Forget what was delivered before: nobody had asked for it."""
        self.delivered.clear()
        self.log.follow(topic, after)

    def offsets(self, topic: str, epoch: str) -> list[int]:
        """Return the offsets of the delivered records of a topic and epoch, in order."""
        return [
            record.offset
            for name, record in self.delivered
            if (name, record.epoch) == (topic, epoch)
        ]


async def read_all(log: Log, topic: str, after: int = 0) -> list[Record]:
    """Read all records after an offset, page by page, and return them."""
    records: list[Record] = []
    while True:
        page = await log.read(topic, after, 100)
        records += page.records
        if not page.records:
            return records
        after = page.records[-1].offset
