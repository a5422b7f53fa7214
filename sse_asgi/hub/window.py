"""The newest events of one topic, in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .log import Record

if TYPE_CHECKING:
    from .log import Limits

__all__ = ["Window"]


class Window:
    """The newest events of one topic, without a hole.

    :param epoch: the epoch of the log.
    :param last: the offset before that of the first event that will be appended.
    :param check: the check there; ``None``: not known.
    :param absent: whether the topic does not exist: see :class:`Absence`.
    """

    __slots__ = (
        "_before", "_begin", "_records", "_times", "absent", "ended", "epoch", "joined", "last",
        "size",
    )  # fmt: skip

    def __init__(
        self, epoch: str, last: int = 0, check: str | None = "", absent: bool = False
    ) -> None:
        self.epoch: str = epoch
        self.last: int = last
        #: Whether the topic does not exist, as far as is known here.
        self.absent: bool = absent
        #: Whether the newest event was the final one, as far as is known here.
        self.ended: bool = False
        self.size: int = 0
        # Those before `_begin` are gone. They are deleted from time to time only, because that
        # moves all others.
        self._records: list[Record] = []
        self._times: list[float] = []
        self._begin = 0
        self._before = check
        #: What :meth:`join_after` has made last, and after which offset.
        self.joined: tuple[int, bytes, Record] | None = None

    @property
    def first(self) -> int:
        """The offset of the oldest event, or of the next event if there is none."""
        return self.last + 1 - len(self)

    def __len__(self) -> int:
        return len(self._records) - self._begin

    def append(self, record: Record, now: float) -> None:
        """Append the next event.

        :param now: the time, for the limit ``max_age``.
        """
        self._records.append(record)
        self._times.append(now)
        self.size += len(record.body)
        self.last = record.offset
        self.ended = record.final
        self.joined = None

    def after(self, offset: int, max_bytes: int) -> list[Record]:
        """Return the events after an offset, up to ``max_bytes`` of bodies, and at least one."""
        records = self._records
        begin = end = max(len(records) - (self.last - offset), self._begin)
        rest = max_bytes
        while end < len(records) and (rest >= len(records[end].body) or end == begin):
            rest -= len(records[end].body)
            end += 1
        return records[begin:end]

    def check(self, offset: int) -> str | None:
        """Return the check of the event at an offset; ``None``: it is not known here."""
        if offset == self.first - 1:
            return self._before
        if self.first <= offset <= self.last:
            return self._records[offset - self.last - 1].check
        return None

    def join_after(self, offset: int, max_bytes: int) -> tuple[int, bytes, Record]:
        """Join the frames of the events after an offset; return that, them and the last event.

        The result is kept: subscribers that are at the same place one after another share it.
        """
        records = self.after(offset, max_bytes)
        frame = b"".join([record.frame for record in records])
        self.joined = (offset, frame, records[-1])
        return self.joined

    def forget_joined(self) -> None:
        """Release what :meth:`join_after` has kept."""
        self.joined = None

    def trim(self, limits: Limits, now: float) -> list[Record]:
        """Remove the events beyond the limits, and return them.

        :param now: the time, for the limit ``max_age``.
        """
        begin = end = self._begin
        records = self._records
        while end < len(records) and (
            len(records) - end > limits.max_events
            or self.size > limits.max_bytes
            or self._times[end] <= now - limits.max_age
        ):
            self.size -= len(records[end].body)
            end += 1
        if end == begin:
            return []
        gone = records[begin:end]
        self._before = gone[-1].check
        self._begin = end
        if end > 32 and end > len(records) // 2:
            del records[:end], self._times[:end]
            self._begin = 0
        else:
            # Release them now. Their places are deleted later.
            records[begin:end] = [_GONE] * (end - begin)
        return gone


#: Takes the place of an event that is gone.
_GONE = Record("", 0, b"")
