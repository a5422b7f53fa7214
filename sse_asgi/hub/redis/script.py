"""The scripts that Redis runs, and ``topic.lua``, the one for each command of the log."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coredis.exceptions import NoScriptError

from ..log import IDLE
from .keys import Top
from .reader import decoded

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ..log import Limits
    from .keys import Keys
    from .link import Client, Link

__all__ = ["TopicScript", "evaluate"]

#: For how many topics that are not followed the newest event is remembered.
REMEMBERED = 10_000

#: Removes a name if its topic does not exist. Otherwise the name moves to the end of the stream. A
#: topic that has been created again has a newer entry: see ``topic.lua``.
SWEEP = """
local log, keys, topics = KEYS[1], KEYS[2], KEYS[3]
local newest = redis.call('ZRANGEBYSCORE', keys, '+inf', '+inf')[1]
if redis.call('XDEL', topics, ARGV[1]) == 1 and redis.call('EXISTS', log) == 1
  and (not newest or newest == ARGV[1])
then
  if newest then
    redis.call('ZREM', keys, newest)
  end
  redis.call('ZADD', keys, '+inf', redis.call('XADD', topics, '*', 'topic', ARGV[2]))
end
"""


class TopicScript:
    """Runs ``topic.lua``, and tells it the newest event of each topic that this process knows of.

    :param followed: the topics whose newest event is always remembered.
    """

    def __init__(self, link: Link, keys: Keys, limits: Limits, followed: Collection[str]) -> None:
        self._link = link
        self._keys = keys
        self._limits = limits
        self._followed = followed
        # The most recently updated last.
        self._tops: OrderedDict[str, Top] = OrderedDict()

    async def run(
        self, operation: str, topic: str, arguments: tuple[Any, ...], client: Client
    ) -> list[Any]:
        """Run ``topic.lua`` for a topic, and return its reply.

        :param operation: ``"append"`` or ``"read"``.
        :param arguments: the arguments of that operation.
        """
        top = self._tops.get(topic, Top())
        keys = self._keys.of_topic(topic)
        limits = self._limits
        max_age = forget_after = 0
        if limits.max_age < math.inf:
            max_age = math.ceil(limits.max_age * 1000)
            forget_after = max_age + math.ceil(IDLE * 1000)
        values: list[Any] = [
            operation, topic, *top,
            limits.max_events, limits.max_bytes, max_age, forget_after, *arguments,
        ]  # fmt: skip
        reply = await evaluate("topic.lua", keys, values, client)
        is_new: int = reply[0]
        if is_new and forget_after:
            self._link.start(partial(self._sweep, self._keys.shard(topic)))
        return list(reply[1:])

    async def _sweep(self, shard: int, client: Client) -> None:
        """Remove the two oldest names of topics in a shard, if their topics no longer exist.

        Called for each new topic, so that the names do not grow without a bound.
        """
        topics = self._keys.topics(shard)
        with client.decoding(False):
            for entry, values in decoded(await client.xrange(topics, count=2)):
                name = values[b"topic"].decode()
                await client.eval(SWEEP, self._keys.of_topic(name), (entry, name))

    def learn(self, topic: str, top: Top) -> None:
        """Remember the newest event of a topic, unless a newer one is known."""
        if top[:2] > self._tops.get(topic, Top())[:2]:
            self._tops[topic] = top
            self._tops.move_to_end(topic)
            while len(self._tops) > REMEMBERED + len(self._followed):
                oldest = next(iter(self._tops))
                if oldest in self._followed:
                    self._tops.move_to_end(oldest)
                else:
                    del self._tops[oldest]

    def clear(self) -> None:
        """Forget all topics."""
        self._tops.clear()


async def evaluate(
    name: str, keys: Sequence[str], values: Sequence[Any], client: Client
) -> list[Any]:
    """Run a script of this package, and return its reply. Texts in it are ``bytes``."""
    script, digest = _script(name)
    with client.decoding(False):
        try:
            reply: Any = await client.evalsha(digest, keys, values)
        except NoScriptError:
            reply = await client.eval(script, keys, values)
    return reply  # type: ignore[no-any-return]


@cache
def _script(name: str) -> tuple[str, str]:
    """Return a script, and its SHA-1 digest, by which Redis finds it."""
    script = Path(__file__).with_name(name).read_text("utf-8")
    return script, hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
