"""What Redis is asked for: the names of keys, and ids of stream entries. Pure, no I/O."""

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

#: How many characters of an epoch stand for the topic; the others are the generation.
_OF_TOPIC = 6


class Entry(NamedTuple):
    """The id of an entry in the stream of a topic."""

    generation: int
    offset: int

    def __str__(self) -> str:
        return f"{self.generation}-{self.offset}"


class Top(NamedTuple):
    """The newest event of a topic that is known here."""

    generation: int = 0
    offset: int = 0
    #: The key of that event; empty if it is not known.
    key: str = ""


def parse_id(text: str) -> Entry:
    """The id of an entry."""
    generation, _, offset = text.partition("-")
    return Entry(int(generation), int(offset))


@dataclass(frozen=True)
class Keys:
    """The keys of everything that begins with a prefix."""

    prefix: str
    #: How many groups the topics are in. In a cluster the keys of a group are in one slot.
    shards: int

    def shard(self, topic: str) -> int:
        """The group of a topic."""
        return crc32(topic.encode()) % self.shards

    def of_topic(self, topic: str) -> tuple[str, str, str]:
        """The keys that ``topic.lua`` needs: the log, the keys of its events, the topics."""
        shard = self.shard(topic)
        return (
            self._key(shard, "log", topic),
            self._key(shard, "keys", topic),
            self.topics(shard),
        )

    def log(self, topic: str) -> str:
        """The stream of a topic's events."""
        return self._key(self.shard(topic), "log", topic)

    def topics(self, shard: int) -> str:
        """The stream of the names of a group's topics."""
        return self._key(shard, "topics")

    def bell(self, shard: int) -> str:
        """A stream for one reader, by which it is roused."""
        return self._key(shard, "bell", secrets.token_hex(8))

    def _key(self, shard: int, *parts: str) -> str:
        return ":".join((self.prefix, f"{{{shard}}}", *parts))

    def epoch(self, topic: str, generation: int) -> str:
        """The epoch of a generation: no two topics have the same."""
        return _digest(self.prefix, topic) + _base36(generation)

    def position(self, topic: str, entry: Entry) -> Position:
        """Where an entry is."""
        return Position(self.epoch(topic, entry.generation), entry.offset)

    def entry(self, position: Position) -> Entry:
        """The entry at a position."""
        return Entry(int(position.epoch[_OF_TOPIC:], 36), position.offset)


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
