"""The rules for topics, patterns and keys. Pure, no I/O."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_key", "check_pattern", "check_topic", "matcher"]

#: The longest topic, and the longest key, in characters.
MAX_TOPIC_LENGTH = 255


def check_topic(topic: object) -> None:
    """Refuse a value that can't be a topic.

    :raises TypeError: it is not a ``str``.
    :raises ValueError: it is empty, is too long, or has control characters or ``*``.
    """
    if not isinstance(topic, str):
        hint = "; unpack them: *topics" if isinstance(topic, (list, tuple, set, frozenset)) else ""
        raise TypeError(f"a topic must be a str, not {topic!r:.80}{hint}")
    if not 0 < len(topic) <= MAX_TOPIC_LENGTH:
        raise ValueError(f"a topic has 1 to {MAX_TOPIC_LENGTH} characters: {topic!r:.80}")
    if "*" in topic:
        raise ValueError(
            f"a topic must not contain '*': {topic!r:.80}; "
            "hub.subscribe(patterns=[...]) is for patterns"
        )
    if not topic.isprintable():
        raise ValueError(f"a topic must not contain control characters: {topic!r:.80}")


def check_key(name: str, key: object) -> None:
    """Refuse a value that can't be a key. ``None`` is no key, and allowed.

    :param name: the name of the parameter, for the message.
    :raises TypeError: it is not a ``str``.
    :raises ValueError: it is empty, is too long, or can't be encoded as UTF-8.
    """
    if key is None:
        return
    if not isinstance(key, str):
        raise TypeError(f"{name} must be a str or None, not {key!r:.80}")
    if not 0 < len(key) <= MAX_TOPIC_LENGTH:
        raise ValueError(f"{name} has 1 to {MAX_TOPIC_LENGTH} characters: {key!r:.80}")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} can't be encoded as UTF-8: {key!r:.80}") from None


def check_pattern(pattern: object) -> None:
    """Refuse a value that can't be a pattern: a topic, in which ``*`` stands for any characters.

    :raises TypeError: it is not a ``str``.
    :raises ValueError: it is empty, is too long, or has control characters.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"a pattern must be a str, not {pattern!r:.80}")
    if not 0 < len(pattern) <= MAX_TOPIC_LENGTH:
        raise ValueError(f"a pattern has 1 to {MAX_TOPIC_LENGTH} characters: {pattern!r:.80}")
    if not pattern.isprintable():
        raise ValueError(f"a pattern must not contain control characters: {pattern!r:.80}")


@lru_cache(maxsize=1024)
def matcher(pattern: str) -> Callable[[str], bool]:
    """Return a function that tells whether a topic matches a pattern.

    It looks for each part once, from left to right. So it takes no longer than the topic is long.
    """
    begin, *rest = pattern.split("*")
    if not rest:
        return pattern.__eq__
    *middle, end = rest
    shortest = len(begin) + len(end)

    def matches(topic: str) -> bool:
        if len(topic) < shortest or not topic.startswith(begin) or not topic.endswith(end):
            return False
        at, last = len(begin), len(topic) - len(end)
        for part in middle:
            at = topic.find(part, at, last)
            if at < 0:
                return False
            at += len(part)
        return True

    return matches
