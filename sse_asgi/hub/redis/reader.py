"""Waiting for new entries of streams: one connection for many topics, whatever the subscribers."""

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

__all__ = ["Entries", "Reader", "Stream", "decoded", "newest_id"]

#: Entries of a stream: their ids and their values.
Entries: TypeAlias = "Sequence[tuple[str, Mapping[bytes, bytes]]]"

#: How long a read waits for entries, in seconds.
BLOCK = 5.0

#: The maximum number of entries of each stream in one read.
COUNT = 100

#: The maximum number of streams for a connection. Redis looks at them all for each new entry.
STREAMS = 100

#: A pause after each read, in seconds for each stream. It is twenty times what a read costs Redis:
#: a reader uses at most a twentieth of Redis. The next read gets all that came meanwhile.
PAUSE = 20e-6

#: The interval between reviews of the streams, in seconds.
REVIEW = 30.0

#: The maximum number of streams that are reviewed at the same time.
REVIEWED = 50


class Stream(Protocol):
    """A stream that a reader waits for."""

    @property
    def key(self) -> str:
        """The key of the stream."""
        ...

    @property
    def last(self) -> str:
        """The id of the last entry that was read."""
        ...

    @property
    def lasts(self) -> bool:
        """Whether the stream must exist in Redis. If not, its first entry may still create it."""
        ...

    def take(self, entries: Entries) -> None:
        """Process new entries."""
        ...

    async def review(self) -> None:
        """Check that Redis still has the same stream, and adapt if it has another one."""
        ...


def decoded(entries: Sequence[StreamEntry]) -> Entries:
    """Return the entries of a stream in the form that :class:`Stream` takes."""
    return [
        (cast(bytes, entry.identifier).decode(), cast(Any, entry.field_values)) for entry in entries
    ]


async def newest_id(key: str, client: Client) -> str:
    """Return the id of the newest entry of a stream."""
    with client.decoding(False):
        entries = decoded(await client.xrevrange(key, count=1))
    return entries[0][0] if entries else "0-0"


class Reader:
    """Waits for new entries of up to :data:`STREAMS` streams.

    :param group: the shard of the streams in a cluster, where one command can read only one slot;
        otherwise 0.
    :param bell: the key of a stream of its own, to end a wait in Redis.
    """

    def __init__(self, link: Link, group: int, bell: str) -> None:
        self._link = link
        self.group: int = group
        self._bell = bell
        self._rung = "0-0"
        self._ringing = False
        self._waiting = False
        self._review_at = self._look_at = -math.inf
        #: Whether :meth:`run` runs, or is about to.
        self.runs: bool = False
        self.streams: dict[str, Stream] = {}

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another stream."""
        return len(self.streams) >= STREAMS

    def add(self, stream: Stream) -> None:
        """Add a stream. A read that is waiting now is repeated with it."""
        self.streams[stream.key] = stream
        if self._waiting and not self._ringing:
            self._ringing = True
            self._link.tasks.start_soon(self._ring)

    def discard(self, stream: Stream) -> None:
        """Remove a stream. The read that is waiting now still returns its entries."""
        if self.streams.get(stream.key) is stream:
            del self.streams[stream.key]

    async def run(self, client: Client) -> None:
        """Read until no stream is left, or until the client is lost."""
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
                    self._review_at = -math.inf  # Redis may come back with other data
                    await anyio.sleep(next(pauses))
                else:
                    pauses, failing = waits(), math.inf
                    await anyio.sleep(PAUSE * len(self.streams))
        finally:
            self.runs = False

    async def _read(self, client: Client) -> None:
        """Wait for entries, and pass them to their streams. First do the checks that are due."""
        if anyio.current_time() >= self._look_at:
            await self._look(client)
            self._look_at = anyio.current_time() + BLOCK
        if anyio.current_time() >= self._review_at:
            pause = REVIEW if await self._review() else BLOCK
            self._review_at = anyio.current_time() + pause
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
        """Check that all streams exist: a read goes on waiting for one that is deleted."""
        keys = [key for key, stream in self.streams.items() if stream.lasts]
        if keys and await client.exists(keys) < len(keys):
            self._review_at = -math.inf

    async def _review(self) -> bool:
        """Review all streams, and return whether none has failed.

        Some at a time: after a failure there may be thousands.
        """
        failed = False

        async def review(stream: Stream) -> None:
            nonlocal failed
            try:
                await stream.review()
            except HubError:
                failed = True

        streams = list(self.streams.values())
        for begin in range(0, len(streams), REVIEWED):
            async with anyio.create_task_group() as tasks:
                for stream in streams[begin : begin + REVIEWED]:
                    tasks.start_soon(review, stream)
        return not failed

    async def _ring(self) -> None:
        """Add an entry to the bell, so that the read that is waiting now returns.

        If that fails, nothing is lost: the read returns after :data:`BLOCK` seconds.
        """
        call = self._link.start(self._add_to_bell)
        with suppress(HubError):
            await call.result()

    async def _add_to_bell(self, client: Client) -> None:
        """Add an entry to the bell, which Redis deletes when it is no longer used."""
        await client.xadd(self._bell, {"ring": ""}, trim_strategy=PureToken.MAXLEN, threshold=1)
        await client.pexpire(self._bell, int(BLOCK * 10_000))
