"""The rules for topics, patterns and keys. Pure, no I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_key", "check_topic", "is_pattern", "matcher"]

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
    if "*" in topic or not topic.isprintable():
        raise ValueError(f"a topic must not contain control characters or '*': {topic!r:.80}")


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


def is_pattern(topic: object) -> bool:
    """Return whether a value is a pattern: a ``str`` with ``*``."""
    return isinstance(topic, str) and "*" in topic


def matcher(pattern: str) -> Callable[[str], object]:
    """Return a function that tells whether a topic matches a pattern."""
    return re.compile(".*".join(map(re.escape, pattern.split("*")))).fullmatch
