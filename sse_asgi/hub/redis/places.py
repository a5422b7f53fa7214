"""The places that the nodes of a hub share, in Redis."""

from __future__ import annotations

import itertools
import math
import secrets
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING
from zlib import crc32

import anyio

from ...errors import HubClosedError, HubError
from .script import evaluate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .keys import Keys
    from .link import Call, Link

__all__ = ["RedisPlaces"]

#: For how many seconds a place is held, if its node does not renew that.
LEASE = 15.0

#: How often it is renewed meanwhile.
RENEWALS = 3

#: The maximum number of kinds of places that are renewed in one step.
COUNT = 100


class RedisPlaces:
    """The places of a log on Redis: see :class:`sse_asgi.hub.PlaceLog`."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._node = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._lease = LEASE
        # The places of each kind that this node holds.
        self._held: dict[str, set[str]] = {}

    async def take(self, name: str, most: int) -> str | None:
        """See :meth:`sse_asgi.hub.PlaceLog.take`."""
        place = f"{self._node}:{next(self._numbers)}"
        try:
            (taken,) = await self._start("take", [name], str(most), place).result()
        except BaseException:
            self._free(name, place)
            raise
        if not taken:
            return None
        self._held.setdefault(name, set()).add(place)
        return place

    def give_back(self, name: str, place: str) -> None:
        """See :meth:`sse_asgi.hub.PlaceLog.give_back`."""
        held = self._held[name]
        held.remove(place)
        if not held:
            del self._held[name]
        self._free(name, place)

    def _free(self, name: str, place: str) -> None:
        # If the hub is closed, or is about to be, the place is free when its time is over.
        with suppress(HubClosedError, RuntimeError):
            self._start("give", [name], place)

    async def keep(self) -> None:
        """Renew what this node holds, again and again."""
        while True:
            with suppress(HubError):
                for names in self._parts():
                    held = ("".join(f"{place} " for place in self._held[name]) for name in names)
                    await self._start("renew", names, *held).result()
            await anyio.sleep(self._lease / RENEWALS)

    def _parts(self) -> Iterator[list[str]]:
        """Yield the kinds of places of which this node holds some, those of a shard together."""
        shards: dict[int, list[str]] = {}
        for name in self._held:
            shards.setdefault(self._shard(name), []).append(name)
        for names in shards.values():
            for begin in range(0, len(names), COUNT):
                if part := [name for name in names[begin : begin + COUNT] if name in self._held]:
                    yield part

    def _start(self, operation: str, names: Sequence[str], *arguments: str) -> Call[list[int]]:
        keys = [self._keys.key(self._shard(name), "places", name) for name in names]
        values = (operation, math.ceil(self._lease * 1000), *arguments)
        return self._link.start(partial(evaluate, "places.lua", keys, values))

    def _shard(self, name: str) -> int:
        return crc32(name.encode()) % self._keys.shards
