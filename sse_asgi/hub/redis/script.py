"""The scripts that Redis runs, and ``topic.lua``, the one for each command of the log."""

from __future__ import annotations

import hashlib
import math
import struct
from collections import OrderedDict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from coredis.exceptions import NoScriptError

from ..log import IDLE
from .keys import Top
from .reader import decoded

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ..log import Limits
    from .keys import Keys
    from .link import Client, Link

__all__ = ["ARGUMENTS", "TopicScript", "evaluate"]

#: How many arguments ``topic.lua`` has for each event that is appended.
ARGUMENTS = 5

#: For how many topics that are not followed the newest event is remembered.
REMEMBERED = 10_000

#: How an array (0xDD) and a string (0xDB) begin in MessagePack: with the number of items or bytes.
_begin = struct.Struct(">BI").pack
#: The empty string, in its short form.
_EMPTY = b"\xa0"

#: Removes a name if its topic does not exist. Otherwise the name moves to the end of the stream. A
#: topic that has been created again has a newer entry: see ``topic.lua``.
SWEEP = """
local log, keys, topics = KEYS[1], KEYS[2], KEYS[3]
local newest
for _, member in ipairs(redis.call('ZRANGEBYSCORE', keys, '+inf', '+inf')) do
  if string.match(member, '^%d') then
    newest = member
  end
end
if redis.call('XDEL', topics, ARGV[1]) == 1 and redis.call('EXISTS', log) == 1
  and (not newest or newest == ARGV[1])
then
  if newest then
    redis.call('ZREM', keys, newest)
  end
  redis.call('ZADD', keys, '+inf', redis.call('XADD', topics, '*', 'topic', ARGV[2]))
end
"""

#: Runs ``topic.lua`` for each of several topics, which have four keys each. The arguments of all
#: are one, in the format of MessagePack, and the replies are one text. A client takes long for each
#: argument, and for each number of a reply.
SEVERAL = """
local function run(KEYS, ARGV)
%s
end
local replies = {}
for i, arguments in ipairs(cmsgpack.unpack(ARGV[1])) do
  local reply = run({KEYS[4 * i - 3], KEYS[4 * i - 2], KEYS[4 * i - 1], KEYS[4 * i]}, arguments)
  reply[2] = string.format('%%.0f', reply[2]) -- others have fewer digits
  replies[i] = table.concat(reply, ' ')
end
return table.concat(replies, ';')
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
        #: After how many milliseconds Redis deletes a topic that is not used; 0: never.
        self.forget_after: int = 0
        if limits.max_age < math.inf:
            self.forget_after = math.ceil(limits.max_age * 1000) + math.ceil(IDLE * 1000)
        # The most recently updated last.
        self._tops: OrderedDict[str, Top] = OrderedDict()

    async def run(
        self, operation: str, topic: str, arguments: Sequence[Any], client: Client
    ) -> list[Any]:
        """Run ``topic.lua`` for a topic, and return its reply.

        :param operation: ``"append"``, ``"read"``, ``"run"``, ``"renew"`` or ``"expire"``.
        :param arguments: the arguments of that operation.
        """
        values = self._values(operation, topic, arguments)
        reply = await _run(_script("topic.lua"), self._keys.of_topic(topic), values, client)
        return self._checked(topic, reply)

    async def run_several(
        self, operation: str, topics: Mapping[str, Sequence[Any]], client: Client
    ) -> dict[str, list[Any]]:
        """Run ``topic.lua`` for several topics in one step, and return the replies, as ``bytes``.

        :param topics: the arguments for each topic. In a cluster, they have to be of the same
            shard.
        """
        keys: list[str] = []
        calls: list[list[Any]] = []
        for topic, arguments in topics.items():
            keys += self._keys.of_topic(topic)
            calls.append(self._values(operation, topic, arguments))
        text: bytes = await _run(_script_for_several(), keys, [_packed(calls)], client)
        lines = [[*line.split(b" ")] for line in text.split(b";")]
        return {
            topic: self._checked(topic, reply) for topic, reply in zip(topics, lines, strict=True)
        }

    async def append(
        self, topics: Mapping[str, Sequence[Any]], client: Client
    ) -> dict[str, list[Top]]:
        """Append events to some topics, and return where they are.

        :param topics: for each topic the arguments for its events: see ``topic.lua``. In a cluster,
            the topics have to be of the same shard.
        """
        replies: dict[str, list[Top]] = {}
        if sum(map(len, topics.values())) == ARGUMENTS:  # one event
            ((topic, arguments),) = topics.items()
            found = {topic: await self.run("append", topic, arguments, client)}
        else:
            found = await self.run_several("append", topics, client)
        for topic, (generation, *values) in found.items():
            replies[topic] = tops = [
                Top(int(generation), int(offset), check.decode())
                for offset, check in zip(values[::2], values[1::2], strict=True)
            ]
            if (newest := max(tops)).offset > 0:
                self.learn(topic, newest)
        return replies

    def _values(self, operation: str, topic: str, arguments: Sequence[Any]) -> list[Any]:
        """Return the arguments of ``topic.lua``."""
        limits = self._limits
        max_age = math.ceil(limits.max_age * 1000) if self.forget_after else 0
        return [
            operation, topic, *self._tops.get(topic, Top()),
            limits.max_events, limits.max_bytes, max_age, self.forget_after, *arguments,
        ]  # fmt: skip

    def _checked(self, topic: str, reply: list[Any]) -> list[Any]:
        """Return a reply of ``topic.lua`` without its first value: whether the topic is new."""
        if int(reply[0]) and self._limits.max_age < math.inf:
            self._link.start(partial(self._sweep, self._keys.shard(topic)))
        return reply[1:]

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


def _packed(values: Sequence[Sequence[Any]]) -> bytes:
    """Return an array of arrays of strings in the format of MessagePack."""
    parts = [_begin(0xDD, len(values))]
    append = parts.append
    for arguments in values:
        append(_begin(0xDD, len(arguments)))
        for value in arguments:
            if type(value) is str and not value:  # most are
                append(_EMPTY)
                continue
            text = value if type(value) is bytes else str(value).encode()
            append(_begin(0xDB, len(text)))
            append(text)
    return b"".join(parts)


async def evaluate(
    name: str, keys: Sequence[str], values: Sequence[Any], client: Client
) -> list[Any]:
    """Run a script of this package, and return its reply. Texts in it are ``bytes``."""
    reply: list[Any] = await _run(_script(name), keys, values, client)
    return reply


async def _run(script: _Script, keys: Sequence[str], values: Sequence[Any], client: Client) -> Any:
    """Run a script, and return its reply."""
    with client.decoding(False):
        try:
            return await client.evalsha(script.digest, keys, values)
        except NoScriptError:
            return await client.eval(script.text, keys, values)


class _Script(NamedTuple):
    """A script, and its SHA-1 digest, by which Redis finds it."""

    text: str
    digest: str

    @classmethod
    def of(cls, text: str) -> _Script:
        """Return a script with its digest."""
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@cache
def _script(name: str) -> _Script:
    """Return a script of this package."""
    return _Script.of(Path(__file__).with_name(name).read_text("utf-8"))


@cache
def _script_for_several() -> _Script:
    """Return a script that runs ``topic.lua`` for each of several topics."""
    return _Script.of(SEVERAL % _script("topic.lua").text)
