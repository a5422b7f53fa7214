"""``topic.lua`` against a model, on a clock that the test moves.

The model is what the stream held last. After each step the stream and its keys are read: nothing
may be missing that the limits allow, and a read answers from exactly that.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from hashlib import sha1
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

import sse_asgi.hub.redis
from sse_asgi.hub.redis.keys import parse_id

from .servers import Connection, RedisServer

TIME = "redis.call('TIME')"
CLOCK = "{math.floor(ARGV[#ARGV] / 1000), ARGV[#ARGV] % 1000 * 1000}"

KEYS = ["key 1", "key 2", "key 3"]


class Event(NamedTuple):
    """An entry of the stream."""

    offset: int
    body: str
    time: int
    key: str
    collapse_key: str
    check: str
    before: str
    final: str


def check_of(before: str, key: str) -> str:
    """Four digits of a number that stands for a key and what was before it."""
    number = int(sha1(f"{before} {key}".encode(), usedforsecurity=False).hexdigest()[:8], 16)
    digits = string.digits + string.ascii_lowercase
    return "".join(digits[number // 36**place % 36] for place in (3, 2, 1, 0))


class TopicMachine(RuleBasedStateMachine):
    """The rules."""

    def __init__(self, connection: Connection, script: str, prefix: str) -> None:
        super().__init__()
        self.redis = connection
        self.script = script
        self.keys = [f"{prefix}:{name}" for name in ("log", "keys", "topics", "runs")]
        self.now = 1_000  # milliseconds
        self.number = 0
        self.exists = False
        self.generation = self.last = 0
        self.newest_generation = 0
        #: The check of the last event, which may be gone.
        self.check = ""
        self.ended = False
        #: Who runs the topic, and the event that ends it if the lease ends; then the time of that.
        self.runner: tuple[str, str] | None = None
        self.lease: int | None = None
        self.events: list[Event] = []
        #: What callers know: generation, offset, check.
        self.tops: list[tuple[int, int, str]] = [(0, 0, "")]
        self.saved: Any = None
        #: What an id has ever stood for: the keys of all events so far.
        self.history: dict[tuple[int, str], tuple[str, ...]] = {(0, ""): ()}

    @initialize(
        max_events=st.sampled_from([1, 3, 60, 1000]),
        max_bytes=st.sampled_from([10, 40, 1000]),
        max_age=st.sampled_from([0, 0, 5, 50]),
    )
    def begin(self, max_events: int, max_bytes: int, max_age: int) -> None:
        self.max_events, self.max_bytes, self.max_age = max_events, max_bytes, max_age

    # -- steps -----------------------------------------------------------------------------------

    def run(self, operation: str, top: tuple[int, int, str], *arguments: object) -> list[Any]:
        """Run the script; first it has to see whether the log is the one that is known."""
        limits = self.max_events, self.max_bytes, self.max_age, 0
        values = (operation, "a topic", *top, *limits, *arguments, self.now)
        reply: list[Any]
        is_new, generation, *reply = self.redis.command(
            "EVALSHA", self.script, 4, *self.keys, *values
        )
        if operation in ("renew", "expire") and not self.exists:
            assert [is_new, generation, *reply] == [0, 0, 0]
            assert not self.redis.command("EXISTS", self.keys[0])
            self.lease = None
            return reply
        if operation == "read" and not self.exists:
            assert (is_new, generation) == (0, 0)
            return reply
        if operation == "append" and arguments[-1] and not self.exists:
            assert [is_new, generation, *reply] == [0, 0, -2, ""]
            assert not self.redis.command("EXISTS", self.keys[0])
            return reply
        assert is_new == (not self.exists)
        renewed = not self.exists or self.is_older(top)
        assert (generation != self.generation) == renewed
        if renewed:
            assert generation > max(self.generation, top[0])
            assert generation >= self.now * 1000
        self.exists, self.generation = True, generation
        return reply

    def is_older(self, top: tuple[int, int, str]) -> bool:
        generation, offset, check = top
        if generation != self.generation:
            return generation > self.generation
        return offset > self.last or (check != "" and self.check_at(offset) not in ("", check))

    def check_at(self, offset: int) -> str:
        """The check of an event, if it is known."""
        if offset == self.last:
            return self.check
        for event in self.events:
            if event.offset == offset:
                return event.check
            if event.offset == offset + 1:
                return event.before
        return ""

    def draw_top(self, data: Any) -> tuple[int, int, str]:
        """What a caller knows: one of the newest events, or nothing, for it has just begun."""
        top: tuple[int, int, str] = data.draw(st.sampled_from([self.tops[0], *self.tops[:-6:-1]]))
        return top

    def exact(self) -> list[Event]:
        """What the limits allow."""
        size, allowed = 0, 0
        for event in reversed(self.events):
            size += len(event.body)
            if allowed == self.max_events or size > self.max_bytes:
                break
            if self.max_age and event.time <= self.now - self.max_age:
                break
            allowed += 1
        return self.events[len(self.events) - allowed :]

    def stored(self) -> list[Event]:
        """What there is; the sizes and the keys have to be those of what there is."""
        events: list[Event] = []
        total = None
        for text, values in self.redis.command("XRANGE", self.keys[0], "-", "+"):
            names = ["body", "size", "time", "key", "collapse_key", "check", "before", "final"]
            assert values[::2] == names
            body, size, time, key, collapse_key, check, before, final = values[1::2]
            assert check == check_of(before, key)
            assert not events or before == events[-1].check
            entry = parse_id(text)
            assert entry.generation == self.generation
            assert total is None or int(size) == total + len(body)
            assert int(size) >= len(body)
            total = int(size)
            events.append(
                Event(entry.offset, body, int(time), key, collapse_key, check, before, final)
            )
        keys = self.redis.command("ZRANGE", self.keys[1], 0, -1, "WITHSCORES")
        known = dict(zip(keys[::2], keys[1::2], strict=True))
        notes = [key for key, score in known.items() if score == "inf"]
        name = [note for note in notes if note[0].isdigit()]
        assert name == [self.redis.command("XRANGE", self.keys[2], "-", "+")[-1][0]]
        for note in notes:
            del known[note]
        if not events and self.last:
            assert f"={self.check}" in notes
        assert ("!" in notes) == self.ended
        assert {note[0]: note[1:] for note in notes if note[0] in "@~"} == (
            dict(zip("@~", self.runner, strict=True)) if self.runner else {}
        )
        assert len(notes) <= 2 + self.ended + 2 * (self.runner is not None)
        lease = self.redis.command("ZSCORE", self.keys[3], "a topic")
        assert (None if lease is None else int(lease)) == self.lease
        assert known == {event.key: str(event.offset) for event in events}
        return events

    def remember(self) -> None:
        self.tops.append((self.generation, self.last, self.check))

    @rule(
        data=st.data(),
        count=st.sampled_from([1, 1, 2, 20]),
        size=st.integers(0, 12),
        key=st.sampled_from([None, None, *KEYS]),
        collapse_key=st.sampled_from(["", "x"]),
        final=st.sampled_from(["", "", "", "1"]),
        runner=st.sampled_from(["", "", "", "ada", "ben", "*"]),
    )
    def append(
        self,
        data: Any,
        count: int,
        size: int,
        key: str | None,
        collapse_key: str,
        final: str,
        runner: str,
    ) -> None:
        top, body = self.draw_top(data), "x" * min(size, self.max_bytes)
        for _ in range(count):
            self.append_one(top, body, key, collapse_key, final, runner)

    @rule(
        data=st.data(),
        runner=st.sampled_from(["ada", "ben"]),
        lease=st.sampled_from([4, 60]),
        can_tell=st.booleans(),
    )
    def begin_run(self, data: Any, runner: str, lease: int, can_tell: bool) -> None:
        last = f"last {self.number}"[: self.max_bytes]
        (status,) = self.run("run", self.draw_top(data), runner, lease, last, int(can_tell))
        if can_tell:
            self.end_if_due()
        if self.ended:
            assert status == -1
            self.lease = None
        elif self.runner is not None and self.runner[0] != runner:
            assert status == -2
            if self.lease is None:  # it was evicted
                self.lease = self.now + lease
        else:
            assert status == 1
            self.runner = self.runner or (runner, last)
            self.lease = self.now + lease
        self.stored()

    @rule(data=st.data(), runner=st.sampled_from(["ada", "ben"]), lease=st.sampled_from([4, 60]))
    def renew(self, data: Any, runner: str, lease: int) -> None:
        existed = self.exists
        (status,) = self.run("renew", self.draw_top(data), runner, lease)
        goes_on = self.runner is not None and self.runner[0] == runner and not self.ended
        assert status == (existed and goes_on)
        if existed and goes_on:
            self.lease = self.now + lease

    @rule(data=st.data())
    def expire(self, data: Any) -> None:
        existed = self.exists
        self.run("expire", self.draw_top(data))
        if existed:
            self.end_if_due()
            if self.runner is None or self.ended:
                self.lease = None
            self.stored()

    def end_if_due(self) -> None:
        """The script has ended the topic, if its runner has not renewed its lease."""
        if self.runner is None:
            self.lease = None
        elif self.lease is not None and self.lease <= self.now:
            runner, last = self.runner
            assert not self.ended
            if self.max_age:
                self.events = self.exact()
            self.add(last, f"!@{runner}", "", "1")
            self.events = self.stored()

    def append_one(
        self,
        top: tuple[int, int, str],
        body: str,
        key: str | None,
        collapse_key: str,
        final: str,
        runner: str,
    ) -> None:
        self.number += 1
        key = key or f"own {self.number}"
        offset, check = self.run("append", top, body, key, collapse_key, final, runner)
        if self.max_age:
            self.events = self.exact()  # what is too old is not known any more
        there = [event.offset for event in self.events if event.key == key]
        is_new = False
        if there:
            assert offset == there[0]
            assert check == self.check_at(offset)
        elif self.ended:
            assert (offset, check) == (-1, "")
        elif runner and (self.runner is None or runner not in ("*", self.runner[0])):
            assert (offset, check) == (-2, "")
            if not self.exists:
                return
        else:
            self.add(body, key, collapse_key, final)
            assert (offset, check) == (self.last, self.check)
            is_new = True
        events, exact = self.stored(), self.exact()
        assert events == self.events[len(self.events) - len(events) :]
        assert len(events) <= self.max_events
        if not is_new:
            assert events == self.events
        assert events[len(events) - len(exact) :] == exact
        if is_new and (self.last % 16 == 0 or len(body) * 64 > self.max_bytes):
            assert events == exact
        self.events = events
        if not self.max_age:  # a quarter too many, at most
            assert sum(len(event.body) for event in events) <= self.max_bytes * 5 / 4

    def add(self, body: str, key: str, collapse_key: str, final: str) -> None:
        history = (*self.history[self.last, self.check], key)
        before, self.check = self.check, check_of(self.check, key)
        self.last += 1
        place = self.last, self.check
        assert self.history.setdefault(place, history) == history, "a second meaning"
        event = Event(self.last, body, self.now, key, collapse_key, self.check, before, final)
        self.events.append(event)
        if final:
            self.ended, self.lease = True, None
        self.remember()

    @rule(data=st.data(), count=st.integers(0, 60), more=st.sampled_from([-1, 0, 0, 1]))
    def read(self, data: Any, count: int, more: int) -> None:
        """About so many events."""
        top = self.draw_top(data)
        if not self.exists:
            self.read_nothing(top)
            return
        after = data.draw(st.sampled_from(["", *range(max(0, self.last - 70), self.last + 3)]))
        begin = max(0, int(after or 0), self.exact()[0].offset - 1 if self.exact() else 0)
        following = [event for event in self.events if event.offset > begin]
        room = max(0, sum(len(event.body) for event in following[:count]) + more)
        reply = self.run("read", top, after, room)
        first, last, ended, before_first, newest, check, *values = reply
        assert ended == self.ended
        events = self.events = self.exact()
        assert self.stored() == events
        assert last == self.last
        assert first == (events[0].offset if events else last + 1)
        assert newest == self.check
        assert before_first == (events[0].before if events else self.check)
        if after == "":
            assert check == newest
        elif int(after) == first - 1:
            assert check == before_first
        else:
            assert check == self.check_at(int(after))
        expected: list[Event] = []
        for event in events if after != "" else []:
            if event.offset > int(after):
                room -= len(event.body)
                if room < 0 and expected:
                    break
                expected.append(event)
        found = list(zip(*[iter(values)] * 5, strict=True))
        assert found == [(e.offset, e.body, e.collapse_key, e.check, e.final) for e in expected]
        self.remember()

    def read_nothing(self, top: tuple[int, int, str]) -> None:
        """The time, and nothing is written."""
        before = [self.redis.command("DUMP", key) for key in self.keys]
        reply = self.run("read", top, "", 0)
        assert reply == [self.now + 1, self.now, 0, "", "", ""]
        assert [self.redis.command("DUMP", key) for key in self.keys] == before

    @rule(milliseconds=st.sampled_from([1, 4, 5, 49, 100]))
    def wait(self, milliseconds: int) -> None:
        self.now += milliseconds

    # -- what an engine may do -------------------------------------------------------------------

    @rule()
    @precondition(lambda self: self.exists)
    def save(self) -> None:
        dumps = [self.redis.command("DUMP", key) for key in self.keys]
        self.saved = (
            dumps, self.generation, self.last, self.check, self.ended, self.runner, self.lease,
            list(self.events),
        )  # fmt: skip

    @rule()
    @precondition(lambda self: self.saved)
    def restore(self) -> None:
        dumps, self.generation, self.last, self.check, *rest = self.saved
        self.ended, self.runner, self.lease, events = rest
        self.events, self.exists = list(events), True
        self.redis.command("DEL", *self.keys)
        for key, dump in zip(self.keys, dumps, strict=True):
            if dump is not None:
                self.redis.command("RESTORE", key, 0, dump, "REPLACE")

    @rule(which=st.sampled_from([slice(0, 2), slice(0, 4), slice(0, 1)]))
    @precondition(lambda self: self.number > 20)
    def lose(self, which: slice) -> None:
        self.redis.command("DEL", *self.keys[which])
        self.exists, self.generation, self.last, self.check, self.events = False, 0, 0, "", []
        self.ended, self.runner = False, None
        if not self.redis.command("EXISTS", self.keys[3]):
            self.lease = None

    @rule()
    def lose_runs(self) -> None:
        """They are evicted."""
        self.redis.command("DEL", self.keys[3])
        self.lease = None

    @rule()
    def lose_names(self) -> None:
        """They are evicted, and the topic is not. It is entered again when it is read."""
        self.redis.command("DEL", self.keys[2])
        if self.exists:
            self.run("read", self.tops[0], "", 0)
            self.events = self.exact()
            self.stored()


def test_topic_model(new_prefix: Callable[[], str]) -> None:
    script = Path(sse_asgi.hub.redis.__file__).with_name("topic.lua").read_text("utf-8")
    assert script.count(TIME) == 1
    with RedisServer() as server, server.connect() as connection:
        digest = connection.command("SCRIPT", "LOAD", script.replace(TIME, CLOCK))
        machine: Any = lambda: TopicMachine(connection, digest, new_prefix())  # noqa: E731
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=100,
                stateful_step_count=50,
                deadline=None,
                derandomize=True,
                phases=[Phase.generate],  # to shrink a failure takes minutes
            ),
        )
