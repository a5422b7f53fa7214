"""Publishing many events in one call: check them all, and append them in parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias, cast

from anyio.lowlevel import checkpoint

from .arguments import checked_body
from .log import TIME_SLICE, NewRecord
from .names import check_topic

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..types import EventLike
    from .log import BatchLog, Limits, Log
    from .positions import Position

__all__ = ["append", "as_lists", "checked_records", "parts"]

#: The maximum number of events, and of bytes, that are appended in one step. While that goes on, a
#: log does nothing else.
EVENTS, BYTES = 250, 2**18

#: The maximum share of what the log keeps. If one step replaced all of it, subscribers would miss
#: events even if they read as fast as they can.
SHARE = 4


#: Events, the key of each, and the collapse key of each.
Lists: TypeAlias = "tuple[list[EventLike], list[str | None], list[str | None]]"


def as_lists(
    events: Iterable[EventLike],
    keys: Iterable[str | None] | None,
    collapse_keys: Iterable[str | None] | None,
) -> Lists:
    """Return the arguments of :meth:`Hub.publish_many` as lists of the same length.

    :raises TypeError: one is not an iterable, or is a single value.
    :raises ValueError: there are more or fewer keys than events.
    """
    if isinstance(events, (str, bytes, Mapping)) or not isinstance(events, Iterable):
        raise TypeError(f"events must be several: [{events!r:.80}]")
    given = list(events)
    found: list[list[str | None]] = []
    for name, values in (("keys", keys), ("collapse_keys", collapse_keys)):
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable | None):
            raise TypeError(f"{name} must be an iterable, one for each event, not {values!r:.80}")
        found.append([None] * len(given) if values is None else list(values))
        if len(found[-1]) != len(given):
            raise ValueError(f"{len(given)} events, but {len(found[-1])} {name}")
    return given, found[0], found[1]


async def checked_records(limits: Limits, topic: str, lists: Lists) -> list[NewRecord]:
    """Check what :meth:`Hub.publish_many` is called with, and return what to append.

    Other tasks run meanwhile. A note of the error says which event is wrong.
    """
    check_topic(topic)
    records: list[NewRecord] = []
    ends = monotonic() + TIME_SLICE
    for number, (event, key, collapse_key) in enumerate(zip(*lists, strict=True)):
        try:
            body = checked_body(topic, event, key, collapse_key)
            limits.check(body)
        except Exception as exc:
            exc.add_note(f"in publish_many(): events[{number}]")
            raise
        records.append(NewRecord(body, key, collapse_key))
        if monotonic() >= ends:
            await checkpoint()
            ends = monotonic() + TIME_SLICE
    return records


def parts(records: Sequence[NewRecord], limits: Limits) -> Iterator[Sequence[NewRecord]]:
    """Divide events into parts that are appended in one step. An event may be larger than that."""
    most = max(1, min(EVENTS, limits.max_events // SHARE))
    room = min(BYTES, limits.max_bytes // SHARE)
    begin = size = 0
    for end, (body, *_) in enumerate(records):
        if end > begin and (end - begin == most or size + len(body) > room):
            yield records[begin:end]
            begin, size = end, 0
        size += len(body)
    if begin < len(records):
        yield records[begin:]


async def append(log: Log, topic: str, part: Sequence[NewRecord]) -> list[Position]:
    """Append events to a log, and return their positions."""
    append_many = getattr(log, "append_many", None)
    if append_many is not None:
        return await cast("BatchLog", log).append_many(topic, part)
    return [
        await log.append(topic, body, key=key, collapse_key=collapse_key)
        for body, key, collapse_key, *_ in part
    ]
