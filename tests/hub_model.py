"""What the models of hubs have in common: topics, clients, and how an id is read."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from typing import Any

from anyio.lowlevel import checkpoint

from sse_asgi.decoder import EventStreamDecoder
from sse_asgi.hub import Hub, Subscription

TOPICS = ("a1", "a2", "b")
SUBSCRIBED = ((("a1",),) * 3) + (("b", "a1"), ("a*",), ("b", "a*"), ("*",), ("a1", "a*"))

NOT_KNOWN = -1


@dataclass
class Topic:
    """A topic, with all the events that it ever had."""

    epoch: str
    #: data, bytes, collapse key, time
    events: list[tuple[str, int, str | None, float]] = field(default_factory=list)
    #: Whether the last event was the final one.
    ended: bool = False
    #: When it was seen first, on the clock of the event loop.
    created: float = 0.0

    @property
    def last(self) -> int:
        return len(self.events)

    def first(
        self, max_events: int, max_bytes: int, max_age: float | None = None, now: float = 0
    ) -> int:
        """The oldest event that the log still has."""
        first, size = self.last + 1, 0
        for _, length, _, time in reversed(self.events):
            size += length
            if self.last + 2 - first > max_events or size > max_bytes:
                break
            if max_age is not None and time <= now - max_age:
                break
            first -= 1
        return first


@dataclass(eq=False)
class Client:
    """What a client must get."""

    subscription: Subscription
    topics: tuple[str, ...]
    given: str | None
    policy: str
    #: What it has had of each topic: an epoch, and an offset or NOT_KNOWN.
    had: dict[str, tuple[str, int]]
    decoder: EventStreamDecoder = field(default_factory=EventStreamDecoder)
    begun: bool = False
    ended: bool = False
    #: Those of which it had something.
    began: set[str] = field(default_factory=set)
    #: Where its history ends in each topic: of that it gets what there is when it looks.
    ends: dict[str, int] = field(default_factory=dict)

    @property
    def patterns(self) -> bool:
        return any("*" in topic for topic in self.topics)

    def wants(self, topic: str) -> bool:
        return any(re.fullmatch(name.replace("*", ".*"), topic) for name in self.topics)


def subscribe(hub: Hub, names: Iterable[str], **options: Any) -> Subscription:
    """Subscribe to topics, and to patterns: those with ``*``."""
    names = tuple(names)
    topics = [name for name in names if "*" not in name]
    patterns = [name for name in names if "*" in name]
    return hub.subscribe(*topics, patterns=patterns, **options)


def read_id(text: str) -> dict[str, int] | None:
    """What an id says: written again, as a client would read it."""
    said: dict[str, int] = {}
    for part in text.split("."):
        epoch, hyphen, offset = part.partition("-")
        if not (hyphen and re.fullmatch("[0-9a-z]+", epoch) and re.fullmatch("[0-9]+", offset)):
            return None
        if epoch in said or str(int(offset)) != offset:
            return None
        said[epoch] = int(offset)
    return said


async def raised(step: Awaitable[object]) -> type[Exception] | None:
    """What it raises. A failure of pytest.raises would be no Exception, and end the portal."""
    try:
        await step
    except Exception as exc:
        return type(exc)
    return None


async def checkpoints(count: int) -> None:
    for _ in range(count):
        await checkpoint()
