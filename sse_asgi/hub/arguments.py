"""What the methods of a hub are called with: refuse what is wrong where it enters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..encoder import encode
from .body import body_of
from .names import check_key, check_pattern, check_topic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..types import EventLike

__all__ = ["check_event_name", "check_log", "check_options", "checked_body", "checked_names"]

_POLICIES = ("gap", "disconnect", "latest")


def check_log(log: object, limits: Mapping[str, object]) -> None:
    """Refuse a log that is none, and limits that are given together with a log."""
    if not all(callable(getattr(log, name, None)) for name in ("append", "read", "run")):
        hint = f"Hub(RedisLog({log!r:.80}))" if isinstance(log, str) else "Hub(max_events=...)"
        raise TypeError(f"log must be a log, such as RedisLog, not {log!r:.80}; try {hint}")
    if limits:
        raise TypeError(f"{', '.join(limits)}: the limits are those of the log that is given")


def check_event_name(name: str, event: object) -> None:
    """Refuse a parameter of a hub that can't be the name of an event."""
    if not event or not isinstance(event, str):
        raise TypeError(f"{name} must be a str, and not empty, not {event!r}")
    encode({"event": event})


def checked_names(
    topics: Iterable[str], patterns: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Check the names of :meth:`Hub.subscribe`, and return each of them once."""
    if isinstance(patterns, str):
        raise TypeError(f"patterns must be several: patterns=[{patterns!r:.80}]")
    patterns = tuple(patterns)
    for topic in topics:
        check_topic(topic)
    for pattern in patterns:
        check_pattern(pattern)
    if not topics and not patterns:
        raise TypeError("subscribe to at least one topic: hub.subscribe('news')")
    return tuple(dict.fromkeys(topics)), tuple(dict.fromkeys(patterns))


def check_options(last_event_id: object, history: object, policy: object, each: object) -> None:
    """Refuse options of :meth:`Hub.subscribe` that have a wrong type or are out of range."""
    if last_event_id is not None and not isinstance(last_event_id, str):
        raise TypeError(f"last_event_id must be a str or None, not {last_event_id!r}")
    if history is not None:
        if not isinstance(history, int) or isinstance(history, bool):
            raise TypeError(f"history must be an int or None, not {history!r}")
        if history < 0:
            raise ValueError(f"history must be at least 0, not {history}")
    if each is not None and not callable(each):
        raise TypeError(f"each must be callable or None, not {each!r:.80}")
    if policy not in _POLICIES:
        raise ValueError(f"policy must be one of {', '.join(_POLICIES)}, not {policy!r}")


def checked_body(topic: object, event: EventLike, key: object, collapse_key: object) -> bytes:
    """Check the arguments of :meth:`Hub.publish`, and return the frame of the event."""
    check_topic(topic)
    check_key("key", key)
    check_key("collapse_key", collapse_key)
    return body_of(event)
