"""The names of keys in Redis, and the ids of stream entries. Pure, no I/O."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

from ..positions import Position

__all__ = ["Entry", "Keys", "Top", "parse_id"]

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"

#: How many characters of an epoch stand for the topic. The others are the generation.
_OF_TOPIC = 6


class Entry(NamedTuple):
    """The id of an entry in the stream of a topic."""

    #: When the epoch began, in microseconds: see ``topic.lua``. 0: the topic does not exist, and
    #: the offset is a moment. All entries come after that.
    generation: int
    offset: int

    def __str__(self) -> str:
        return f"{self.generation}-{self.offset}"


class Top(NamedTuple):
    """The newest event of a topic that this process knows of."""

    generation: int = 0
    offset: int = 0
    #: The check of that event; empty: not known.
    check: str = ""


def parse_id(text: str) -> Entry:
    """Return the id of an entry that Redis has sent as text."""
    generation, _, offset = text.partition("-")
    return Entry(int(generation), int(offset))


@dataclass(frozen=True)
class Keys:
    """The keys of a log in Redis. All begin with the prefix."""

    prefix: str
    #: The number of shards of topics. In a cluster all keys of a shard are in one slot.
    shards: int

    def shard(self, topic: str) -> int:
        """Return the shard of a topic."""
        return crc32(topic.encode()) % self.shards

    def of_topic(self, topic: str) -> tuple[str, str, str, str]:
        """Return the keys for ``topic.lua``, in its order."""
        return _of_topic(self, topic)

    def log(self, topic: str) -> str:
        """Return the key of the stream with the events of a topic."""
        return self.key(self.shard(topic), "log", topic)

    def topics(self, shard: int) -> str:
        """Return the key of the stream with the names of the topics of a shard."""
        return self.key(shard, "topics")

    def runs(self, shard: int) -> str:
        """Return the key of the topics of a shard that have a runner."""
        return self.key(shard, "runs")

    def presence(self, shard: int) -> tuple[str, ...]:
        """Return the keys for ``presence.lua``."""
        names = ("nodes", "members", "index", "counts", "changes")
        return tuple(self.key(shard, "presence", name) for name in names)

    def messages(self) -> str:
        """Return the key of the stream with the messages for all nodes."""
        return self.key(0, "messages")

    def bell(self, shard: int) -> str:
        """Return the key of a stream for one reader. An entry in it ends the reader's wait."""
        return self.key(shard, "bell", secrets.token_hex(8))

    def key(self, shard: int, *parts: str) -> str:
        """Return a key of a shard."""
        return ":".join((self.prefix, f"{{{shard}}}", *parts))

    def epoch(self, topic: str, generation: int) -> str:
        """Return the epoch for a generation of a topic. No two topics have the same.

        The generation 0 stands for the absence of the topic.
        """
        return _digest(self.prefix, topic) + _base36(generation)

    def position(self, topic: str, top: Top) -> Position:
        """Return the position of an event."""
        return Position(self.epoch(topic, top.generation), top.offset, top.check)

    def entry(self, position: Position) -> Entry:
        """Return the id of the entry at a position."""
        return Entry(int(position.epoch[_OF_TOPIC:], 36), position.offset)


@lru_cache(maxsize=4096)
def _of_topic(keys: Keys, topic: str) -> tuple[str, str, str, str]:
    shard = keys.shard(topic)
    return keys.log(topic), keys.key(shard, "keys", topic), keys.topics(shard), keys.runs(shard)


@lru_cache(maxsize=4096)
def _digest(prefix: str, topic: str) -> str:
    digest = blake2b(topic.encode(), key=blake2b(prefix.encode()).digest(), digest_size=8).digest()
    return _base36(int.from_bytes(digest, "big") % 36**_OF_TOPIC).rjust(_OF_TOPIC, "0")


@lru_cache(maxsize=4096)
def _base36(number: int) -> str:
    text = ""
    while number or not text:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    return text
