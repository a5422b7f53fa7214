"""What a node has to say of the topics of one shard, and what it follows there. Pure, no I/O."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import anyio

from .keys import Entry

__all__ = ["Followed", "Noted", "Shard"]

#: A topic, and an info; with an empty info: how many subscribers the topic has.
Noted: TypeAlias = tuple[str, str]


@dataclass
class Followed:
    """A topic that is followed."""

    #: The change up to which it is known who is present; ``None``: nothing is known.
    position: Entry | None = None
    #: Whether Redis has all infos that are present. If not, it has lost some that were known.
    complete: bool = False
    _born: bytes | None = None

    def learn(self, born: bytes, is_settled: bool) -> None:
        """Note from where it is known who is present.

        :param born: when Redis noted the nodes first. If that is another time than it was, it has
            lost everything meanwhile.
        :param is_settled: whether all nodes had the time to say it again.
        """
        self.complete = self._born in (None, born) or is_settled
        if self.complete:
            self._born = born


class Shard:
    """The part of a node in one shard."""

    def __init__(self, number: int) -> None:
        self.number: int = number
        #: The name of the node. It has another one after it was taken to be dead.
        self.node: str = secrets.token_hex(8)
        #: Whether Redis knows the node.
        self.is_known: bool = False
        self.subscribers: dict[str, int] = {}
        self.infos: dict[str, dict[str, None]] = {}
        self.followed: dict[str, Followed] = {}
        #: The topics of which it has to be found out who is present.
        self.unclear: dict[str, None] = {}
        #: Whether a task keeps it.
        self.is_kept: bool = False
        #: Set when there is something to do.
        self.event: anyio.Event = anyio.Event()
        #: One call of the script at a time: a call that is sent again must not come after the next.
        self.lock: anyio.Lock = anyio.Lock()
        self._noted: dict[Noted, None] = {}

    @property
    def is_used(self) -> bool:
        """Whether there is anything to say or to follow."""
        return bool(self.subscribers or self.infos or self.followed)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to say or to follow, now and until something is noted."""
        return not self.is_used and not self._noted

    @property
    def is_due(self) -> bool:
        """Whether Redis has to be told something."""
        return bool(self._noted) or self.is_known != self.is_used

    def set_subscribers(self, topic: str, count: int) -> None:
        """Note how many subscribers a topic has on this node."""
        if count:
            self.subscribers[topic] = count
        else:
            self.subscribers.pop(topic, None)
        self._note((topic, ""))

    def set_present(self, topic: str, info: str, present: bool) -> None:
        """Note that an info is present on this node, or is no longer."""
        infos = self.infos.setdefault(topic, {})
        if present:
            infos[info] = None
        else:
            infos.pop(info, None)
        if not infos:
            del self.infos[topic]
        self._note((topic, info))

    def _note(self, noted: Noted) -> None:
        self._noted[noted] = None
        self.event.set()

    def take(self, most: int) -> list[Noted]:
        """Return what was noted first, to be told, and take it out."""
        taken = list(islice(self._noted, most))
        for noted in taken:
            del self._noted[noted]
        return taken

    def put_back(self, taken: list[Noted]) -> None:
        """Put back what could not be told."""
        self._noted.update(dict.fromkeys(taken))

    def arguments(self, taken: list[Noted]) -> list[str]:
        """Return what the script has to be told: how it is now."""
        arguments: list[str] = []
        for topic, info in taken:
            if not info:
                arguments += ("count", topic, str(self.subscribers.get(topic, 0)))
            else:
                present = info in self.infos.get(topic, ())
                arguments += ("join" if present else "leave", topic, info)
        return arguments

    def begin_again(self) -> None:
        """Say everything again, as a new node: Redis does not know this one."""
        self.node = secrets.token_hex(8)
        self.is_known = False
        self._noted = {(topic, ""): None for topic in self.subscribers}
        self._noted.update(
            ((topic, info), None) for topic, infos in self.infos.items() for info in infos
        )

    def clear(self) -> None:
        """Forget everything."""
        self.is_known = False
        for of in (self.subscribers, self.infos, self.followed, self.unclear, self._noted):
            of.clear()
        self.event.set()
