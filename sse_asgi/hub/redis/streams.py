"""The streams in Redis that a log follows: those of topics, and those with the names of topics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..log import Record
from .keys import Entry, Top, parse_id
from .reader import decoded, newest_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from ..log import Absence, Page
    from ..positions import Position
    from .keys import Keys
    from .link import Client
    from .reader import Entries
    from .script import TopicScript

    class Follower(Protocol):
        """The log, as far as this file knows it."""

        keys: Keys
        script: TopicScript

        def deliver(self, topic: str, records: Sequence[Record]) -> None: ...
        def create(self, topic: str) -> None: ...
        def renew(self, topic: str, position: Position) -> None: ...
        async def read(self, topic: str, after: int | None, max_bytes: int) -> Page: ...
        async def load(self, stream: NamesStream) -> None: ...
        def absence(self, topic: str, until: int) -> Absence: ...


__all__ = ["NamesStream", "TopicStream"]

#: The maximum number of names of topics in one read.
NAMES = 1000


class TopicStream:
    """The stream of a topic that is followed."""

    def __init__(self, log: Follower, topic: str, entry: Entry) -> None:
        self._log = log
        self._topic = topic
        self.key: str = log.keys.log(topic)
        self.move(entry)

    def move(self, entry: Entry) -> None:
        """Move behind an entry."""
        self.entry: Entry = entry
        self.last: str = str(entry)  # each read needs it

    @property
    def lasts(self) -> bool:
        """See :class:`Stream`."""
        return self.entry.generation > 0

    def take(self, entries: Entries) -> None:
        """See :class:`Stream`."""
        records: list[Record] = []
        before, newest, check = self.entry, self.entry, ""
        for text, values in entries:
            entry = parse_id(text)
            if entry > newest:
                newest = entry
                check = values.get(b"check", b"").decode()
                epoch = self._log.keys.epoch(self._topic, entry.generation)
                collapse_key = values[b"collapse_key"].decode() or None
                body, final = values[b"body"], bool(values.get(b"final"))
                records.append(Record(epoch, entry.offset, body, collapse_key, check, final))
        if records:
            self.move(newest)
            top = Top(*newest, check)
            self._log.script.learn(self._topic, top)
            if before.generation or self._is_of_first_epoch(before, records[0]):
                self._log.deliver(self._topic, records)
            else:
                self._log.renew(self._topic, self._log.keys.position(self._topic, top))

    def _is_of_first_epoch(self, before: Entry, first: Record) -> bool:
        """Return whether an event is of the first epoch after a moment of absence."""
        created = self._log.keys.entry(first.position).generation // 1000
        return self._begins(before, self._log.absence(self._topic, created))

    def see(self, page: Page) -> None:
        """Move to the end of the topic if it has begun a new epoch, or does not exist any more.

        No entry tells of a new epoch until the first event of it comes.
        """
        before, end = self.entry, self._log.keys.entry(page.end)
        if page.absent:
            # What came and went while Redis could not be reached is not passed over in silence.
            moves = before.generation > 0 or self._begins(before, page.absence)
        else:
            gets_all = page.first == 1 <= page.last and self._begins(before, page.absence)
            moves = end.generation > before.generation and not gets_all
        if moves:
            self.move(end)
            self._log.renew(self._topic, page.end)

    def _begins(self, before: Entry, absence: Absence | None) -> bool:
        """Return whether a topic that did not exist has had no other events since then."""
        position = self._log.keys.position(self._topic, Top(*before))
        return absence is not None and absence.covers(position)

    async def review(self) -> None:
        """See :class:`Stream`."""
        await self._log.read(self._topic, None, 0)


class NamesStream:
    """The stream with the names of the topics of a shard."""

    def __init__(self, log: Follower, names: dict[str, None], shard: int) -> None:
        self._log = log
        self._names = names
        # The entry of each name in the stream, oldest first.
        self._entries: dict[str, Entry] = {}
        self.key: str = log.keys.topics(shard)
        self.lasts: bool = False
        self.last: str = "0-0"

    async def load(self, client: Client) -> None:
        """Read all names, and remove those that the stream no longer has."""
        before = list(self._entries.items())
        with client.decoding(False):
            oldest = decoded(await client.xrange(self.key, count=1))
            if parse_id(await newest_id(self.key, client)) < parse_id(self.last):
                self.last = "0-0"  # Redis has older data, and its clock may be behind
            while page := await client.xrange(self.key, start=f"({self.last}", count=NAMES):
                self.take(decoded(page))
        for name, entry in before:
            if oldest and entry >= parse_id(oldest[0][0]):
                break
            if self._entries.get(name) == entry:  # it has not moved to the end of the stream
                del self._entries[name], self._names[name]

    def take(self, entries: Entries) -> None:
        """See :class:`Stream`."""
        for text, values in entries:
            self.last = text
            name = values[b"topic"].decode()
            self._entries.pop(name, None)
            self._entries[name] = parse_id(text)
            if name not in self._names:
                self._names[name] = None
                self._log.create(name)

    async def review(self) -> None:
        """See :class:`Stream`."""
        await self._log.load(self)
