"""What the log on Redis does by itself: names of keys, ids, waits, and what it remembers.

It runs on real servers in tests/redis.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_asgi.hub import HubClosedError, HubError, Page, Position, Record
from sse_asgi.hub.positions import join, parse
from sse_asgi.hub.redis import RedisLog
from sse_asgi.hub.redis.keys import Entry, Keys, Top, parse_id
from sse_asgi.hub.redis.link import LONGEST, SHORTEST, Call, Link, waits
from sse_asgi.hub.redis.script import REMEMBERED

pytestmark = pytest.mark.anyio

NUMBERS = st.integers(0, 2**52)


# -- keys, ids and epochs --------------------------------------------------------------------------


@given(generation=NUMBERS, offset=NUMBERS)
def test_the_id_of_an_entry(generation: int, offset: int) -> None:
    entry = Entry(generation, offset)
    assert str(entry) == f"{generation}-{offset}"
    assert parse_id(str(entry)) == entry


@given(
    topic=st.text(min_size=1),
    generation=st.integers(0, 36**6 - 1),
    offset=NUMBERS.filter(lambda offset: offset < 10**16),
    check=st.sampled_from(["", "0", "abcd", "zzzzzzzz"]),
)
def test_an_entry_and_its_position_say_the_same(
    topic: str, generation: int, offset: int, check: str
) -> None:
    """And a client gets the position as an id, and gives it back."""
    keys = Keys("sse_asgi", 16)
    position = keys.position(topic, Top(generation, offset, check))
    assert keys.entry(position) == Entry(generation, offset)
    assert position.epoch == keys.epoch(topic, generation)
    assert len(position.epoch) <= 12
    assert position.epoch.isalnum()
    assert position.epoch.isascii()
    parsed = position if offset else position._replace(check="")
    assert parse(join([position])) == {position.epoch: parsed}


def test_epochs_differ() -> None:
    """By the topic, its generation, and the prefix."""
    epochs = [
        Keys(prefix, 16).epoch(topic, generation)
        for prefix in ("a", "b")
        for topic in ("x", "y", "z")
        for generation in (0, 1, 35, 36, 37)
    ]
    assert len(set(epochs)) == len(epochs)
    (same,) = {Keys("a", shards).epoch("x", 1) for shards in (1, 16)}
    assert same[6:] == "1"


def test_keys_of_a_topic_are_in_one_slot() -> None:
    """What is in braces decides in which, and no more of it than there are shards."""
    for shards in (1, 3, 16):
        keys = Keys("prefix", shards)
        braces = set()
        for number in range(200):
            topic = f"{{t}}:{number}"
            log, names, topics, runs = keys.of_topic(topic)
            shard = keys.shard(topic)
            assert 0 <= shard < shards
            assert log == keys.log(topic) == f"prefix:{{{shard}}}:log:{topic}"
            assert names == f"prefix:{{{shard}}}:keys:{topic}"
            assert topics == keys.topics(shard) == f"prefix:{{{shard}}}:topics"
            assert runs == keys.runs(shard) == f"prefix:{{{shard}}}:runs"
            bell = keys.bell(shard)
            assert bell.startswith(f"prefix:{{{shard}}}:bell:")
            assert bell != keys.bell(shard)  # each reader has its own
            braces.add(shard)
        assert len(braces) == shards


# -- waits -----------------------------------------------------------------------------------------


def test_waits_grow_to_a_bound_and_differ() -> None:
    seconds = list(itertools.islice(waits(), 200))
    for attempt, wait in enumerate(seconds):
        whole = min(SHORTEST * 2**attempt, LONGEST)
        assert 0.5 * whole <= wait <= whole
    assert len(set(seconds)) > 100


# -- a command -------------------------------------------------------------------------------------


async def test_all_who_wait_for_a_command_get_its_result() -> None:
    call: Call[str] = Call()
    results: list[str] = []

    async def wait() -> None:
        results.append(await call.result())

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert results == []
        call.succeed("done")
    call.fail(HubError("too late"))
    assert await call.result() == "done"
    assert results == ["done"] * 3


async def test_the_first_error_of_a_command_is_its_error() -> None:
    call: Call[str] = Call()
    first = HubError("first")
    call.fail(first)
    call.fail(HubError("second"))
    for _ in range(2):
        with pytest.raises(HubError) as caught:
            await call.result()
        assert caught.value is first


async def test_nothing_can_be_asked_before_the_log_runs() -> None:
    log = RedisLog("redis://localhost:1")
    for refused in (log.append("t", b"x"), log.read("t", None, 0), log.follow_topics()):
        with pytest.raises(HubClosedError, match="not open"):
            await refused
    assert log.position("t") is None  # type: ignore[func-returns-value]
    assert log.topics() is None


@pytest.mark.parametrize(
    "url",
    ["localhost", "http://localhost", "redis://", "unix://", "redis://host:port", "rediss:host"],
)
def test_what_is_no_url_is_refused_without_its_password(url: str) -> None:
    url = url.replace("//", "//:secret@", 1) if "//h" in url else url
    with pytest.raises(ValueError, match="a URL of Redis begins with") as caught:
        Link(url, 1.0)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "checked"),
    [
        ("rediss://host", True),
        ("rediss://host?db=1", True),
        ("rediss://host?ssl_cert_reqs=none", False),
        ("rediss://host?ssl_check_hostname=false", False),
        ("redis://host", False),
        ("unix:///run/redis.sock", False),
    ],
)
def test_the_name_in_a_certificate_is_checked(url: str, checked: bool) -> None:
    """Unless somebody says otherwise."""
    source: Any = Link(url, 1.0)._source
    if checked:
        assert source in (f"{url}?ssl_check_hostname=true", f"{url}&ssl_check_hostname=true")
        assert source.count("?") == 1
    else:
        assert source == url


# -- what is known of topics -----------------------------------------------------------------------


class Told:
    """What a log tells its hub."""

    def __init__(self, log: RedisLog) -> None:
        self.delivered: list[tuple[str, int, bytes, str | None]] = []
        self.created: list[str] = []
        self.renewed: list[tuple[str, Position]] = []
        log.attach(self._deliver, self.created.append, self._renew)

    def _deliver(self, topic: str, records: Sequence[Record]) -> None:
        self.delivered += [(topic, r.offset, r.body, r.collapse_key) for r in records]

    def _renew(self, topic: str, position: Position) -> None:
        self.renewed.append((topic, position))


def entry(number: str, body: bytes, collapse_key: bytes = b"") -> tuple[str, dict[bytes, bytes]]:
    return number, {b"check": b"c", b"body": body, b"collapse_key": collapse_key}


async def test_entries_that_were_had_before_are_not_delivered_again() -> None:
    log = RedisLog("redis://localhost")
    told = Told(log)
    log.follow("t", log.keys.position("t", Top(1, 5)))
    followed = log._followed["t"]
    assert (followed.key, followed.last) == (log.keys.log("t"), "1-5")
    followed.take([entry("1-4", b"a"), entry("1-5", b"b")])
    assert told.delivered == []
    followed.take([entry("1-5", b"b"), entry("1-6", b"c", b"x"), entry("1-7", b"d")])
    assert told.delivered == [("t", 6, b"c", "x"), ("t", 7, b"d", None)]
    assert followed.last == "1-7"
    followed.take([entry("1-7", b"d"), entry("2-1", b"e")])  # of another generation
    assert told.delivered[2:] == [("t", 1, b"e", None)]
    log.unfollow("t")
    log.unfollow("t")
    assert log._followed == {}


async def test_a_new_epoch_is_told_once_and_an_older_one_never() -> None:
    log = RedisLog("redis://localhost")
    told = Told(log)
    log.follow("t", log.keys.position("t", Top(2, 5)))
    followed = log._followed["t"]

    def see(top: Top) -> None:
        epoch = log.keys.epoch("t", top.generation)
        followed.see(Page(epoch, 1, top.offset, (), {top.offset: top.check}))

    for last in (Top(2, 9), Top(1, 50)):
        see(last)
    assert told.renewed == []
    for _ in range(2):
        see(Top(3, 4, "c"))
    assert told.renewed == [("t", log.keys.position("t", Top(3, 4, "c")))]
    assert followed.last == "3-4"


async def test_the_newest_event_of_so_many_topics_is_remembered() -> None:
    """And of those that are followed, however many there are."""
    log = RedisLog("redis://localhost")
    log.follow("followed", log.keys.position("followed", Top(1, 1)))
    log.script.learn("followed", Top(1, 1, "k"))
    log.script.learn("followed", Top(1, 0, "older"))
    log.script.learn("followed", Top(0, 9, "older"))
    for number in range(REMEMBERED + 10):
        log.script.learn(str(number), Top(1, 1))
    assert log.script._tops["followed"] == Top(1, 1, "k")
    assert len(log.script._tops) == REMEMBERED + 1
    assert "0" not in log.script._tops
    assert str(REMEMBERED + 9) in log.script._tops
