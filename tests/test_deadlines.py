"""What is due in a stream, and when. The tests tell what happens and what time it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sse_asgi import CloseReason
from sse_asgi.options import StreamOptions, Timing
from sse_asgi.supervisor.deadlines import Deadlines, Due

inf = math.inf

#: Times that an option may have: tiny, alike, as by default, and never.
ABOVE_ZERO = st.sampled_from([2**-20, 0.01, 1.0, 5.0, 15.0, 30.0, inf]) | st.floats(1e-6, 100)
FINITE = st.sampled_from([0.0, 2**-20, 1.0, 5.0]) | st.floats(0, 100)
TIMINGS = st.builds(
    Timing,
    ping=ABOVE_ZERO,
    send_timeout=ABOVE_ZERO,
    cleanup_timeout=FINITE | st.just(inf),
    grace=FINITE,
    defer_start=FINITE | st.just(inf),
    max_lifetime=ABOVE_ZERO,
)


class Wait:
    """The scope in which the watchdog waits."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline


def changed(timing: Timing, **changes: float) -> Timing:
    return Timing(**{name: getattr(timing, name) for name in Timing.__slots__} | changes)


def never_due() -> Deadlines:
    """The deadlines of a stream that has started, with no time limit at all."""
    times = Deadlines(
        Timing(
            ping=inf,
            send_timeout=inf,
            cleanup_timeout=inf,
            grace=0,
            defer_start=0,
            max_lifetime=inf,
        ),
        0,
    )
    times.has_started()
    return times


# -- examples --------------------------------------------------------------------------------------


def test_the_most_urgent_of_all_comes_first() -> None:
    timing = Timing(
        ping=1, send_timeout=2, cleanup_timeout=3, grace=0, defer_start=4, max_lifetime=50
    )
    times = Deadlines(timing, 0)
    times.tell(2, 3)
    times.sending_since = 3
    times.handed_over = True
    now = 100.0
    assert times.due(now) is Due.MAX_LIFETIME
    times.lifetime = inf
    assert times.due(now) is Due.CLOSE
    times.drain_deadline = inf
    assert times.due(now) is Due.SEND_TIMEOUT
    times.sending_since = None
    assert times.due(now) is Due.HANDED_OVER
    times.handed_over = False
    assert times.due(now) is Due.START
    times.has_started()
    assert times.due(now) is Due.PING
    times.last_write = now
    assert times.due(now) is Due.NOTHING
    assert list(Due)[-1] is Due.NOTHING


def max_lifetime(times: Deadlines) -> None:
    times.lifetime = 7


def end(times: Deadlines) -> None:
    times.tell(5, 2)


def end_that_is_being_sent(times: Deadlines) -> None:
    times.timing = changed(times.timing, cleanup_timeout=3)
    times.tell(1, 3)
    times.finishing = True


def send_timeout(times: Deadlines) -> None:
    times.timing = changed(times.timing, send_timeout=6)
    times.sending_since = 1


def start(times: Deadlines) -> None:
    times.started = False
    times.start_by = 7


def ping(times: Deadlines) -> None:
    times.timing = changed(times.timing, ping=2)
    times.last_write = 5


@pytest.mark.parametrize(
    ("fact", "due"),
    [
        (max_lifetime, Due.MAX_LIFETIME),
        (end, Due.CLOSE),
        (end_that_is_being_sent, Due.CLOSE),
        (send_timeout, Due.SEND_TIMEOUT),
        (start, Due.START),
        (ping, Due.PING),
    ],
)
def test_a_thing_is_due_at_its_time_and_not_before(
    fact: Callable[[Deadlines], None], due: Due
) -> None:
    times = never_due()
    assert times.next(0) == inf
    fact(times)
    assert times.next(5) == 7
    assert times.due(math.nextafter(7, 0)) is Due.NOTHING
    assert times.due(7) is due
    assert times.due(1000) is due


def test_what_is_handed_over_is_due_at_once() -> None:
    times = never_due()
    times.handed_over = True
    assert times.next(5) == 5
    assert times.due(5) is Due.HANDED_OVER


def test_a_send_that_is_under_way_is_looked_at_again_when_the_next_ping_may_be_due() -> None:
    times = never_due()
    times.timing = changed(times.timing, ping=2)
    times.sending_since = 4
    assert times.next(5) == 7  # if it ends at once
    assert times.due(7) is Due.NOTHING  # if it has not ended


def test_no_ping_is_due_if_a_timer_sends_them() -> None:
    times = never_due()
    ping(times)
    times.pings_by_timer = True
    assert times.due(1000) is Due.NOTHING
    assert times.next(5) == inf


def test_a_stream_is_not_closed_while_its_start_is_being_sent() -> None:
    times = never_due()
    times.started, times.starting, times.sending_since = False, True, 1
    times.wait_scope = Wait(inf)  # type: ignore[assignment]
    times.tell(2, 1)
    assert times.due(1000) is Due.NOTHING
    assert times.next(5) == inf
    assert times.wakes == inf
    times.has_started()
    assert times.wakes == 3
    assert times.due(1000) is Due.CLOSE


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({}, 100),
        ({"defer_start": False}, 100),
        ({"defer_start": 4}, 104),
        ({"defer_start": True}, inf),
    ],
)
def test_the_response_starts_as_the_option_says(options: Any, start: float) -> None:
    assert Deadlines(StreamOptions(**options).timing, 100).start_by == start


def test_lifetimes_are_spread_over_their_last_tenth() -> None:
    timing = never_due().timing
    assert Deadlines(timing, 1000).lifetime == inf
    ends = [Deadlines(changed(timing, max_lifetime=100), 1000).lifetime for _ in range(1000)]
    assert 1090 <= min(ends) < 1091
    assert 1099 < max(ends) <= 1100


# -- properties of one question --------------------------------------------------------------------


@given(tells=st.lists(st.tuples(st.floats(0, 100), FINITE), min_size=1, max_size=6))
def test_the_earliest_end_counts_whatever_the_order(tells: list[tuple[float, float]]) -> None:
    times = never_due()
    for now, grace in tells:
        times.tell(now, grace)
    ends = min(now + grace for now, grace in tells)
    assert times.drain_deadline == ends
    assert times.wakes == ends
    assert times.due(ends) is Due.CLOSE
    assert ends == 0 or times.due(math.nextafter(ends, -1)) is Due.NOTHING


@given(wakes=st.lists(st.floats(allow_nan=False), max_size=6))
def test_the_watchdog_is_woken_earlier_and_never_later(wakes: list[float]) -> None:
    times = never_due()
    for number, at in enumerate(wakes):
        if number == 1:
            times.wait_scope = Wait(times.wakes)  # type: ignore[assignment]
        times.wake(at)
        assert times.wakes == min(wakes[: number + 1])
        if times.wait_scope is not None:
            assert times.wait_scope.deadline == times.wakes


@given(
    timing=TIMINGS,
    lifetime=FINITE | st.just(inf),
    drain=FINITE | st.just(inf),
    since=FINITE,
    phase=st.sampled_from(["before the start", "the start", "after the start", "the end"]),
)
def test_a_send_of_the_watchdog_ends_at_the_first_of_three_limits(
    timing: Timing, lifetime: float, drain: float, since: float, phase: str
) -> None:
    times = Deadlines(timing, 0)
    times.lifetime, times.drain_deadline = lifetime, drain
    times.starting = phase == "the start"
    times.started = phase in ("after the start", "the end")
    times.finishing = phase == "the end"
    limits: dict[CloseReason | None, float] = {
        CloseReason.MAX_LIFETIME: lifetime + timing.grace,
        CloseReason.SEND_TIMEOUT: since + timing.send_timeout,
    }
    if phase == "after the start":
        limits[None] = drain
    elif phase == "the end":
        limits[None] = drain + timing.cleanup_timeout
    else:  # a start is not interrupted because the stream is told to end
        limits[None] = inf
    deadline, reason = times.of_a_send(since)
    assert deadline == min(limits.values())
    assert limits[reason] == deadline


# -- a stream, with a watchdog that does what is due -----------------------------------------------


class AWatchedStream(RuleBasedStateMachine):
    """All that happens to the deadlines of a stream, in any order, and a watchdog that looks.

    The watchdog sleeps until ``wakes`` and does what is due, as ``watchdog.py`` does. What is sent
    is taken at once by a client that reads, and waits for one that does not.
    """

    times: Deadlines

    @initialize(timing=TIMINGS, now=st.sampled_from([0.0, 1000.0, 123456.789]))
    def open(self, timing: Timing, now: float) -> None:
        self.now = self.changed = now
        self.reads = True
        self.open_stream(timing)

    def open_stream(self, timing: Timing) -> None:
        self.times = Deadlines(timing, self.now)
        self.over = False
        #: What the send that is under way has still to send.
        self.messages: list[str] = []
        #: When the watchdog began to send, if it sends.
        self.since: float | None = None
        self.look()

    # The watchdog.

    def look(self) -> None:
        """Do what is due now, then sleep until something is."""
        times = self.times
        for _ in Due:  # no more than each once
            due = times.due(self.now)
            if due is Due.NOTHING:
                times.wakes = times.next(self.now)
                times.wait_scope = Wait(times.wakes)  # type: ignore[assignment]
                assert times.wakes > self.now, "the watchdog would not sleep"
                return
            self.do(due)
            if self.over or self.since is not None:
                return
        raise AssertionError("more and more is due at one time")

    def do(self, due: Due) -> None:
        times, timing = self.times, self.times.timing
        is_due = {
            Due.MAX_LIFETIME: times.lifetime,
            Due.CLOSE: times.drain_deadline + (timing.cleanup_timeout if times.finishing else 0),
            Due.SEND_TIMEOUT: (times.sending_since or 0) + timing.send_timeout,
            Due.HANDED_OVER: self.changed,
            Due.START: times.start_by,
            Due.PING: times.last_write + timing.ping,
        }[due]
        # Exactly then; or now that something has happened without which it was not due.
        assert is_due == self.now or is_due < self.now == self.changed
        if due is Due.MAX_LIFETIME:
            times.lifetime = inf
            times.tell(self.now, timing.grace)
        elif due is Due.CLOSE:
            assert not times.starting, "a start is interrupted"
            self.over = True
        elif due is Due.SEND_TIMEOUT:
            self.over = True
        else:
            assert times.sending_since is None, "two messages are sent at a time"
            assert due is not Due.PING or times.started
            self.since = self.now
            times.wakes, _ = times.of_a_send(self.now)
            times.wait_scope = Wait(times.wakes)  # type: ignore[assignment]
            times.handed_over = False
            self.send()

    def interrupt_send(self) -> None:
        """End the watchdog's own send, which takes too long."""
        assert self.now == self.limit() or self.limit() < self.now == self.changed
        self.over = True

    def limit(self) -> float:
        """Return until when the watchdog may send."""
        times, since = self.times, self.since
        assert since is not None
        limit = min(times.lifetime + times.timing.grace, since + times.timing.send_timeout)
        if times.started:
            limit = min(
                limit,
                times.drain_deadline + (times.timing.cleanup_timeout if times.finishing else 0),
            )
        return limit

    def settle(self) -> None:
        """Let the watchdog run, if it is woken."""
        for _ in range(4):
            if self.over or self.times.wakes > self.now:
                return
            if self.since is None:
                self.look()
            else:
                self.interrupt_send()
        raise AssertionError("the watchdog keeps the event loop busy")

    # What is sent, by either.

    def send(self) -> None:
        self.messages = ["body"] if self.times.started else ["start", "body"]
        self.begin_message()
        if self.reads:
            self.take(len(self.messages))

    def begin_message(self) -> None:
        times = self.times
        if self.messages[0] == "start":
            times.starting = True
        times.sending_since = self.now
        times.wake(self.now + times.timing.send_timeout)

    def take(self, count: int) -> None:
        """Have the client take so many of the messages that are being sent."""
        times, since = self.times, self.since
        self.changed = self.now
        for _ in range(count):
            times.sending_since, times.last_write = None, self.now
            if self.messages.pop(0) == "start":
                times.has_started()
                if since is None:
                    times.wake(-inf)
            if self.messages:
                self.begin_message()
        if self.messages:
            return
        self.since = None
        if since is not None:
            self.look()
        elif times.finishing:
            self.over = True

    @property
    def flushing(self) -> bool:
        return self.since is not None or self.times.handed_over

    @property
    def host_sends(self) -> bool:
        return self.times.sending_since is not None and self.since is None

    @property
    def host_may_send(self) -> bool:
        return not (self.over or self.flushing or self.host_sends)

    # What happens.

    @precondition(lambda self: self.over)
    @rule(timing=TIMINGS)
    def another_stream_is_opened(self, timing: Timing) -> None:
        self.open_stream(timing)

    @precondition(lambda self: self.host_may_send)
    @rule()
    def the_host_sends(self) -> None:
        self.changed = self.now
        self.send()
        self.settle()

    @precondition(lambda self: self.host_may_send and self.times.started and self.reads)
    @rule()
    def something_is_sent_at_once(self) -> None:
        self.changed = self.now
        self.times.last_write = self.now

    @precondition(lambda self: not (self.over or self.host_sends or self.times.finishing))
    @rule()
    def something_is_handed_over(self) -> None:
        self.changed = self.now
        was_flushing = self.flushing
        self.times.handed_over = True
        if not was_flushing:
            self.times.wake(-inf)
        self.settle()

    @precondition(lambda self: self.host_may_send and not self.times.finishing)
    @rule()
    def the_source_has_ended(self) -> None:
        self.changed = self.now
        self.times.finishing = True

    @precondition(lambda self: not self.over and self.since is None and self.times.finishing)
    @rule()
    def the_server_says_that_the_client_has_left(self) -> None:
        self.changed = self.now
        self.times.drain_deadline = min(self.times.drain_deadline, self.now)
        self.look()

    @precondition(lambda self: not self.over)
    @rule(grace=FINITE)
    def the_stream_is_told_to_end(self, grace: float) -> None:
        self.changed = self.now
        before = self.times.drain_deadline
        self.times.tell(self.now, grace)
        assert self.times.drain_deadline == min(before, self.now + grace)
        self.settle()

    @precondition(lambda self: not self.over and self.times.started)
    @rule()
    def a_timer_sends_pings(self) -> None:
        self.times.pings_by_timer = True

    @rule()
    def the_client_stops_reading(self) -> None:
        self.reads = False

    @rule()
    def the_client_reads(self) -> None:
        self.reads = True
        if not self.over and self.messages:
            self.take(len(self.messages))
            self.settle()

    @precondition(lambda self: not self.over and self.messages)
    @rule()
    def the_client_reads_one_message(self) -> None:
        self.take(1)
        self.settle()

    @rule(seconds=st.sampled_from([2**-20, 0.3, 1.0, 10.0]) | st.floats(1e-6, 100))
    def time_passes(self, seconds: float) -> None:
        self.pass_until(self.now + seconds)

    @precondition(lambda self: not self.over and self.times.wakes < inf)
    @rule()
    def time_passes_until_the_watchdog_wakes(self) -> None:
        self.pass_until(self.times.wakes)

    def pass_until(self, until: float) -> None:
        for _ in range(30):
            if self.over or self.times.wakes > until:
                self.now = until
                return
            assert self.times.wakes >= self.now
            self.now = self.times.wakes
            self.settle()
            self.check()  # also where no rule stops
        # Pings are so frequent that this would take too long: less time has passed.

    # What is always true.

    def moments(self) -> list[float]:
        """Return every time at which the answer of ``due()`` may change, from now on."""
        times, timing = self.times, self.times.timing
        moments = [
            self.now,
            times.lifetime,
            times.drain_deadline,
            times.drain_deadline + timing.cleanup_timeout,
            (times.sending_since or 0) + timing.send_timeout,
            times.start_by,
            times.last_write + timing.ping,
        ]
        return sorted(moment for moment in moments if self.now <= moment < inf)

    @invariant()
    def check(self) -> None:
        if self.over:
            return
        times, now = self.times, self.now
        sends = times.sending_since is not None
        following = times.next(now)
        before = math.nextafter(following, -inf)
        for moment in [*self.moments(), (now + min(following, 1e9)) / 2, before]:
            if now <= moment < following:
                assert times.due(moment) is Due.NOTHING
        if sends:
            assert times.sending_since is not None
            assert following <= now + times.timing.ping
            assert following <= times.sending_since + times.timing.send_timeout
        elif following < inf:
            assert times.due(following) is not Due.NOTHING
        # The watchdog has nothing before it that it does not know of.
        assert times.wait_scope is not None
        assert times.wait_scope.deadline == times.wakes
        if self.since is not None:
            assert times.wakes <= self.limit()
        else:
            due = (moment for moment in self.moments() if times.due(moment) is not Due.NOTHING)
            assert times.wakes <= next(due, inf)


AWatchedStream.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_a_watched_stream = AWatchedStream.TestCase
