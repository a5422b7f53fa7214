"""Waiting for new entries of streams: one connection, however many topics and subscribers."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import anyio
from coredis import PureToken

from ...errors import HubError
from .link import PASSING, waits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coredis.response.types import StreamEntry

    from .link import Client, Link

__all__ = ["Entries", "Reader", "Stream"]

#: Ids of entries, and their values.
Entries: TypeAlias = "Sequence[tuple[str, Mapping[bytes, bytes]]]"

#: How long Redis may have nothing to say, in seconds.
BLOCK = 5.0

#: How many entries of a stream are read at once.
COUNT = 100

#: How many streams one connection waits for. Redis looks at each of them whenever one has an entry.
STREAMS = 100

#: A pause after each read, in seconds for each stream: twenty times what that costs Redis, so that
#: a reader takes no more than a twentieth of it. What comes meanwhile is read at once.
PAUSE = 20e-6

#: How often the streams are looked after, in seconds.
REVIEW = 30.0

#: How many of them at the same time.
REVIEWED = 50


class Stream(Protocol):
    """A stream that a reader waits for."""

    @property
    def key(self) -> str:
        """Its key."""
        ...

    @property
    def last(self) -> str:
        """The id of the last entry that it has had."""
        ...

    @property
    def lasts(self) -> bool:
        """Whether Redis has it, whenever it is read; else it may still have to come into being."""
        ...

    def take(self, entries: Entries) -> None:
        """Have further entries."""
        ...

    async def review(self) -> None:
        """See that it is still the stream that it was."""
        ...


def decoded(entries: Sequence[StreamEntry]) -> Entries:
    """The entries of a stream as :class:`Stream` takes them."""
    return [
        (cast(bytes, entry.identifier).decode(), cast(Any, entry.field_values)) for entry in entries
    ]


class Reader:
    """Waits for entries of up to :data:`STREAMS` streams, of one group."""

    def __init__(self, link: Link, group: int, bell: str) -> None:
        self._link = link
        self.group: int = group
        self._bell = bell
        self._rung = "0-0"
        self._ringing = False
        self._waiting = False
        self._review_at = self._look_at = -math.inf
        #: Whether it is at work.
        self.runs: bool = False
        self.streams: dict[str, Stream] = {}

    @property
    def is_full(self) -> bool:
        """Whether it has no room for another stream."""
        return len(self.streams) >= STREAMS

    def add(self, stream: Stream) -> None:
        """Wait for one more."""
        self.streams[stream.key] = stream
        if self._waiting and not self._ringing:
            self._ringing = True
            self._link.tasks.start_soon(self._ring)

    def discard(self, stream: Stream) -> None:
        """Wait for it no longer; Redis is told at the next read."""
        if self.streams.get(stream.key) is stream:
            del self.streams[stream.key]

    async def run(self, client: Client) -> None:
        """Read until there is no stream left, or until the client is lost."""
        self._rung = "0-0"
        self._review_at = -math.inf
        pauses, failing = waits(), math.inf
        try:
            while self.streams:
                try:
                    await self._read(client)
                except PASSING as exc:
                    now = anyio.current_time()
                    failing = min(failing, now)
                    if now > failing + self._link.timeout:
                        raise
                    self._link.blame(client, exc)
                    self._review_at = -math.inf  # who knows what comes back
                    await anyio.sleep(next(pauses))
                else:
                    pauses, failing = waits(), math.inf
                    await anyio.sleep(PAUSE * len(self.streams))
        finally:
            self.runs = False

    async def _read(self, client: Client) -> None:
        if anyio.current_time() >= self._look_at:
            await self._look(client)
            self._look_at = anyio.current_time() + BLOCK
        if anyio.current_time() >= self._review_at:
            await self._review()
            self._review_at = anyio.current_time() + REVIEW
        ids = {key: stream.last for key, stream in self.streams.items()}
        ids[self._bell] = self._rung
        self._ringing = False
        self._waiting = True
        try:
            with anyio.fail_after(BLOCK + self._link.timeout), client.decoding(False):
                found: Any = await client.xread(ids, count=COUNT, block=int(BLOCK * 1000))
        finally:
            self._waiting = False
        for key, entries in (found or {}).items():
            if (name := key.decode()) == self._bell:
                self._rung, _ = decoded(entries)[-1]
            elif (stream := self.streams.get(name)) is not None:
                stream.take(decoded(entries))

    async def _look(self, client: Client) -> None:
        """Notice that streams are gone, which ends no waiting for them: FLUSHALL, say."""
        keys = [key for key, stream in self.streams.items() if stream.lasts]
        if keys and await client.exists(keys) < len(keys):
            self._review_at = -math.inf

    async def _review(self) -> None:
        """Some at a time: there may be thousands after a failure."""
        streams = list(self.streams.values())
        for begin in range(0, len(streams), REVIEWED):
            async with anyio.create_task_group() as tasks:
                for stream in streams[begin : begin + REVIEWED]:
                    tasks.start_soon(_review, stream)

    async def _ring(self) -> None:
        """Have Redis answer, so that it can be asked again. Nothing is lost where that fails: it
        answers soon anyway.
        """
        call = self._link.start(self._add_to_bell)
        with suppress(HubError):
            await call.result()

    async def _add_to_bell(self, client: Client) -> None:
        await client.xadd(self._bell, {"ring": ""}, trim_strategy=PureToken.MAXLEN, threshold=1)
        await client.pexpire(self._bell, int(BLOCK * 10_000))


async def _review(stream: Stream) -> None:
    with suppress(HubError):  # at the next time, perhaps with another client
        await stream.review()
