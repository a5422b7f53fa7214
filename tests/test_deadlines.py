"""What is due in a stream, and when. The tests tell what happens and what time it is."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sse_asgi.options import StreamOptions, Timing
from sse_asgi.supervisor.deadlines import Deadlines, Due

inf = math.inf

#: What is lost when times are added.
ROUNDING = 1e-9

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
    names = set(Timing.__slots__) - {"looks"}  # which follows from another
    return Timing(**{name: getattr(timing, name) for name in names} | changes)


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
    times.started = True
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
    assert times.due(now) is Due.PROGRESS
    times.look(now, progress=False)
    assert times.due(now) is Due.SEND_TIMEOUT
    times.look(now, progress=True)
    assert times.due(now) is Due.NOTHING
    times.sending_since = None
    times.opening = True
    assert times.due(now) is Due.NOTHING
    times.opening = False
    assert times.due(now) is Due.HANDED_OVER
    times.handed_over = False
    assert times.due(now) is Due.START
    times.started = True
    assert times.due(now) is Due.PING
    times.last_write = now
    assert times.due(now) is Due.NOTHING
    assert list(Due)[-1] is Due.NOTHING


def max_lifetime(times: Deadlines) -> None:
    times.lifetime = 7


def expiry(times: Deadlines) -> None:
    times.expire(7)


def recheck(times: Deadlines) -> None:
    times.recheck(7)


def end(times: Deadlines) -> None:
    times.tell(5, 2)


def end_of_a_send_that_is_spared(times: Deadlines) -> None:
    times.timing = changed(times.timing, cleanup_timeout=3)
    times.sending_since = 3
    times.tell(1, 3)
    times.spare(4)


def end_while_the_factory_is_awaited(times: Deadlines) -> None:
    times.opening = True
    times.tell(5, 2)


def send_timeout(times: Deadlines) -> None:
    times.timing = changed(times.timing, send_timeout=6)
    times.sending_since = 1
    times.look(inf, progress=False)  # that can't be seen


def first_look(times: Deadlines) -> None:
    times.timing = changed(times.timing, send_timeout=12)
    times.look(3, progress=False)  # at the send before
    times.sending_since = 4


def next_look(times: Deadlines) -> None:
    times.timing = changed(times.timing, send_timeout=12)
    times.sending_since = 1
    times.look(4, progress=False)


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
        (expiry, Due.MAX_LIFETIME),
        (recheck, Due.RECHECK),
        (end, Due.CLOSE),
        (end_of_a_send_that_is_spared, Due.CLOSE),
        (end_while_the_factory_is_awaited, Due.CLOSE),
        (send_timeout, Due.SEND_TIMEOUT),
        (first_look, Due.PROGRESS),
        (next_look, Due.PROGRESS),
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


def test_a_new_stream_has_its_start_before_it_and_nothing_else() -> None:
    times = Deadlines(changed(never_due().timing, defer_start=3), 4)
    assert times.next(4) == 7
    assert times.due(math.nextafter(7, 0)) is Due.NOTHING
    assert times.due(7) is Due.START
    assert times.wakes == inf
    assert not times.spared_in_vain


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


def test_nothing_is_sent_while_the_factory_is_awaited() -> None:
    times = never_due()
    ping(times)
    times.handed_over = times.opening = True
    times.started, times.start_by = False, 3
    assert times.due(1000) is Due.NOTHING
    assert times.next(5) == inf
    times.opening = False
    assert times.next(5) == 5
    assert times.due(5) is Due.HANDED_OVER


def test_a_start_that_is_being_sent_is_closed_like_any_other_send() -> None:
    times = never_due()
    times.started, times.starting, times.sending_since = False, True, 1
    wait = Wait(inf)
    times.wait_scope = wait  # type: ignore[assignment]
    times.tell(2, 1)
    assert times.wakes == wait.deadline == times.next(2) == 3
    assert times.due(3) is Due.CLOSE


def test_a_client_that_takes_something_gets_its_time_anew() -> None:
    times = never_due()
    times.timing = changed(times.timing, send_timeout=8)
    times.sending_since = 1
    for seconds in range(3, 33, 2):
        assert times.next(seconds - 1) == seconds
        assert times.due(seconds) is Due.PROGRESS
        times.look(seconds, progress=seconds % 4 == 1)
        assert times.due(seconds) is Due.NOTHING
    assert times.sending_since == 29
    times.look(36, progress=False)
    assert times.next(36) == 37
    assert times.due(math.nextafter(37, 0)) is Due.NOTHING
    assert times.due(37) is Due.PROGRESS


@pytest.mark.parametrize("looked", [-inf, 1, 8.5])
@pytest.mark.parametrize("late", [0, 1000])
def test_a_client_has_a_last_look_before_its_time_is_over(looked: float, late: float) -> None:
    """However late that is: what it has taken since the look before is not known."""
    times = never_due()
    times.timing = changed(times.timing, send_timeout=8)
    times.sending_since, times.looked = 1, looked
    assert times.due(9 + late) is Due.PROGRESS
    times.look(9 + late, progress=False)
    assert times.due(9 + late) is times.due(1009) is Due.SEND_TIMEOUT
    times.look(9 + late, progress=True)
    assert times.due(9 + late) is Due.NOTHING
    assert times.next(9 + late) == 11 + late


def test_where_nothing_can_be_seen_nobody_looks_again() -> None:
    times = never_due()
    times.timing = changed(times.timing, send_timeout=8)
    times.look(inf, progress=False)
    for since in (1, 100):
        times.sending_since = since
        assert times.next(since) == since + 8
        assert times.due(math.nextafter(since + 8, 0)) is Due.NOTHING
        assert times.due(since + 8) is Due.SEND_TIMEOUT


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


@given(timing=TIMINGS, drained=FINITE, closed=FINITE)
def test_a_send_that_is_spared_has_the_time_of_a_cleanup_and_no_more(
    timing: Timing, drained: float, closed: float
) -> None:
    times = Deadlines(changed(timing, send_timeout=inf, max_lifetime=inf), 0)
    times.sending_since = 0
    times.tell(0, drained)
    times.wakes = inf
    times.spare(closed)
    ends = closed + timing.cleanup_timeout
    assert times.wakes == ends
    assert times.next(closed) == min(ends, closed + timing.ping)
    assert times.due(math.nextafter(ends, -1)) is Due.NOTHING
    assert ends == inf or times.due(ends) is Due.CLOSE


def test_a_send_that_is_spared_gets_no_more_time_when_the_client_leaves() -> None:
    times = never_due()
    times.timing = changed(times.timing, cleanup_timeout=5)
    times.sending_since = 0
    times.spare(1)
    times.spare(4)
    assert times.due(6) is Due.CLOSE


@given(
    send_timeout=st.sampled_from([2**-20, 1.0, 30.0]) | st.floats(1e-6, 100),
    pauses=st.lists(st.floats(0, 2), max_size=10),
    late=st.sampled_from([0.0, 0.0, 0.01, 0.3, 10.0]),
    visible=st.booleans(),
)
def test_a_client_has_the_send_timeout_since_it_took_something(
    send_timeout: float, pauses: list[float], late: float, visible: bool
) -> None:
    """A part of it more, if it was seen late; and where nothing can be seen, from the beginning.

    :param pauses: how long the client takes nothing, one after the other, in send timeouts.
    :param late: how late the watchdog always wakes.
    """
    times = never_due()
    times.timing = changed(times.timing, send_timeout=send_timeout)
    times.sending_since = now = 0.0
    takes = list(itertools.accumulate(pause * send_timeout for pause in pauses))
    seen = 0
    for _ in range(200):
        now = times.next(now) + late
        taken = bisect.bisect_right(takes, now)
        if (due := times.due(now)) is Due.SEND_TIMEOUT:
            break
        assert due is Due.PROGRESS
        if visible:
            first = times.looked < times.sending_since
            times.look(now, progress=first or taken != seen)
            seen = taken
        else:
            times.look(inf, progress=False)
        if times.due(now) is Due.SEND_TIMEOUT:
            break
    else:
        raise AssertionError("it waits for ever")
    since, more = ([0.0, *takes][taken], send_timeout / 4 + late) if visible else (0.0, 0.0)
    assert since + send_timeout <= now <= since + send_timeout + more + late + ROUNDING


# -- a stream, with a watchdog that does what is due -----------------------------------------------


class AWatchedStream(RuleBasedStateMachine):
    """All that happens to the deadlines of a stream, in any order, and a watchdog that looks.

    The watchdog sleeps until ``wakes`` and does what is due, as ``watchdog.py`` does; also while a
    send of its own waits. What is sent is taken at once by a client that reads. One that does not
    takes a part of it at times, which the watchdog may see.
    """

    times: Deadlines

    @initialize(
        timing=TIMINGS,
        now=st.sampled_from([0.0, 1000.0, 123456.789]),
        opening=st.booleans(),
        visible=st.booleans(),
    )
    def open(self, timing: Timing, now: float, opening: bool, visible: bool) -> None:
        self.now = self.changed = self.blocked = now
        self.reads = True
        self.open_stream(timing, opening, visible)

    def open_stream(self, timing: Timing, opening: bool, visible: bool) -> None:
        self.times = Deadlines(timing, self.now)
        self.times.opening = opening
        self.over = False
        #: When the stream was closed, if it is.
        self.closed: float | None = None
        #: When the end that was on its way was limited, because the client has left.
        self.left: float | None = None
        #: What the send that is under way has still to send.
        self.messages: list[str] = []
        #: Whether the watchdog is in a send.
        self.flushing = False
        #: Whether it is seen what the client takes; how much that was, and at the last look.
        self.visible = visible
        self.taken = self.seen = 0
        #: When the client took something last, or the message began that is being sent.
        self.quiet_since = self.now
        self.look()

    # The watchdog.

    def look(self) -> None:
        """Do what is due now, then sleep until something is."""
        times = self.times
        done: list[Due] = []
        while (due := times.due(self.now)) is not Due.NOTHING:
            done.append(due)
            # Once each; only a stream without time for its cleanup is closed and interrupted.
            assert done.count(due) <= (2 if due is Due.CLOSE else 1), "it comes again and again"
            self.do(due)
            if self.over:
                return
        times.wakes = times.next(self.now)
        times.wait_scope = Wait(times.wakes)  # type: ignore[assignment]
        assert times.wakes > self.now, "the watchdog would not sleep"

    def do(self, due: Due) -> None:
        times, timing = self.times, self.times.timing
        since = times.sending_since or 0
        is_due = {
            Due.MAX_LIFETIME: min(times.lifetime, times.expires),
            Due.RECHECK: times.recheck_at,
            Due.CLOSE: times.drain_deadline if times.spared_until is None else times.spared_until,
            Due.SEND_TIMEOUT: since + timing.send_timeout,
            Due.PROGRESS: min(max(since, times.looked) + timing.looks, since + timing.send_timeout),
            Due.HANDED_OVER: self.changed,
            Due.START: times.start_by,
            Due.PING: times.last_write + timing.ping,
        }[due]
        # Exactly then; or now that something has happened without which it was not due.
        assert is_due == self.now or is_due < self.now == self.changed
        if due is Due.MAX_LIFETIME:
            times.lifetime = times.expires = inf
            times.tell(self.now, timing.grace)
        elif due is Due.RECHECK:
            times.recheck_at = inf
        elif due is Due.CLOSE:
            self.close()
        elif due is Due.SEND_TIMEOUT:
            self.check_send_timeout()
            self.over = True
        elif due is Due.PROGRESS:
            self.look_at_the_client()
        else:
            assert times.sending_since is None, "two messages are sent at a time"
            assert not times.opening
            assert self.closed is None
            assert due is not Due.PING or times.started
            times.handed_over = False
            self.flushing = True
            self.send()

    def close(self) -> None:
        """Close the stream, and let a send that is under way go on for a while; or stop that."""
        times = self.times
        if times.sending_since is None:
            self.over = True
        elif times.spared_until is None:
            self.closed = self.now
            times.spare(self.now)
        else:
            began = self.left if self.closed is None else self.closed
            assert began is not None
            assert self.now >= began + times.timing.cleanup_timeout
            self.over = True

    def look_at_the_client(self) -> None:
        """See whether the client has taken something, as ``Watchdog._look()`` does."""
        times = self.times
        assert times.sending_since is not None, "there is nothing to look at"
        if not self.visible:
            assert times.looked < inf, "it looks again, although nothing can be seen"
            times.look(inf, progress=False)
            return
        first = times.looked < times.sending_since
        times.look(self.now, progress=first or self.taken != self.seen)
        self.seen = self.taken

    def check_send_timeout(self) -> None:
        """See that the client has taken nothing for so long, and not for much longer."""
        quiet, timeout = self.quiet_since, self.times.timing.send_timeout
        assert self.now >= quiet + timeout, "it has taken something meanwhile"
        if self.now != self.changed:
            if self.visible:  # whose time begins with the first look, which a blocked loop delays
                assert self.now <= max(quiet, self.blocked) + 1.25 * timeout + ROUNDING
            else:
                assert self.now == quiet + timeout

    def settle(self) -> None:
        """Let the watchdog run, if it is woken."""
        if not self.over and self.times.wakes <= self.now:
            self.look()

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
        times.sending_since = self.quiet_since = self.now
        times.wake(self.now + times.timing.looks)

    def take(self, count: int) -> None:
        """Have the client take so many of the messages that are being sent."""
        times = self.times
        for _ in range(count):
            self.taken += 1
            times.sending_since, times.last_write = None, self.now
            if self.messages.pop(0) == "start":
                times.started, times.starting = True, False
                if not self.flushing:
                    times.wake(-inf)
            if self.messages:
                self.begin_message()
        if self.messages:
            return
        if times.finishing or self.closed is not None:
            self.over = True
        self.flushing = False

    @property
    def sends(self) -> bool:
        return self.times.sending_since is not None

    @property
    def host_may_send(self) -> bool:
        times = self.times
        return not (self.over or self.sends or times.handed_over or times.opening)

    # What happens.

    @precondition(lambda self: self.over)
    @rule(timing=TIMINGS, opening=st.booleans(), visible=st.booleans())
    def another_stream_is_opened(self, timing: Timing, opening: bool, visible: bool) -> None:
        self.open_stream(timing, opening, visible)

    @precondition(lambda self: not self.over and self.times.opening)
    @rule()
    def the_factory_has_returned(self) -> None:
        self.changed = self.now
        self.times.opening = False
        self.times.wake(-inf)
        self.settle()

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

    @precondition(
        lambda self: (
            not (self.over or self.times.opening or self.times.finishing)
            and (self.flushing or not self.sends)
            and self.closed is None
        )
    )
    @rule()
    def something_is_handed_over(self) -> None:
        self.changed = self.now
        was_flushing = self.flushing or self.times.handed_over
        self.times.handed_over = True
        if not was_flushing:
            self.times.wake(-inf)
        self.settle()

    @precondition(lambda self: not self.over)
    @rule(seconds=st.sampled_from([-5.0, 0.0, 1.0, 60.0, inf]))
    def it_is_to_expire(self, seconds: float) -> None:
        self.changed = self.now
        self.times.expire(self.now + seconds)
        self.settle()

    @precondition(lambda self: not self.over)
    @rule(seconds=st.sampled_from([2**-20, 1.0, 60.0]))
    def it_is_to_ask(self, seconds: float) -> None:
        self.times.recheck(self.now + seconds)
        self.settle()

    @precondition(lambda self: self.host_may_send and not self.times.finishing)
    @rule()
    def the_source_has_ended(self) -> None:
        self.times.finishing = True

    @precondition(
        lambda self: (
            not self.over and self.times.finishing and self.sends and not self.flushing
            and self.left is None
        )
    )  # fmt: skip
    @rule()
    def the_server_says_that_the_client_has_left(self) -> None:
        self.changed = self.left = self.now
        self.times.spare(self.now)
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
        self.the_client_takes_messages(len(self.messages))

    @precondition(lambda self: not self.over and self.messages)
    @rule()
    def the_client_reads_one_message(self) -> None:
        self.the_client_takes_messages(1)

    def the_client_takes_messages(self, count: int) -> None:
        if self.over or not self.messages:
            return
        self.changed = self.now
        flushed = self.flushing
        self.take(count)
        if not self.over and flushed and not self.flushing:
            self.look()  # the watchdog comes back from its send
        self.settle()

    @precondition(lambda self: not self.over and self.messages)
    @rule(after=st.sampled_from([0, 0.1, 0.25, 0.9]))
    def the_client_takes_a_part(self, after: float) -> None:
        """Do that after a part of the send timeout."""
        if after and self.times.timing.send_timeout < inf:
            self.pass_until(self.now + after * self.times.timing.send_timeout)
        self.taken += 1
        if self.visible:
            self.quiet_since = self.now

    @rule(seconds=st.sampled_from([2**-20, 0.3, 1.0, 10.0]) | st.floats(1e-6, 100))
    def time_passes(self, seconds: float) -> None:
        self.pass_until(self.now + seconds)

    @precondition(lambda self: not self.over and self.times.wakes < inf)
    @rule()
    def time_passes_until_the_watchdog_wakes(self) -> None:
        self.pass_until(self.times.wakes)

    @rule(seconds=st.sampled_from([0.3, 10.0, 1000.0]))
    def the_event_loop_is_blocked(self, seconds: float) -> None:
        self.now += seconds
        self.changed = self.blocked = self.now
        self.settle()

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
        since = times.sending_since or 0
        moments = [
            self.now,
            times.lifetime,
            times.drain_deadline,
            times.spared_until or 0,
            since + timing.send_timeout,
            max(since, times.looked) + timing.looks,
            times.start_by,
            times.last_write + timing.ping,
        ]
        return sorted(moment for moment in moments if self.now <= moment < inf)

    @invariant()
    def check(self) -> None:
        if self.over:
            return
        times, timing, now = self.times, self.times.timing, self.now
        following = times.next(now)
        before = math.nextafter(following, -inf)
        for moment in [*self.moments(), (now + min(following, 1e9)) / 2, before]:
            if now <= moment < following:
                assert times.due(moment) is Due.NOTHING
        if self.sends:
            assert following <= now + timing.ping
        if following < inf and not (self.sends and following == now + timing.ping):
            assert times.due(following) is not Due.NOTHING
        # The watchdog has nothing before it that it does not know of.
        assert times.wait_scope is not None
        assert times.wait_scope.deadline == times.wakes
        due = (moment for moment in self.moments() if times.due(moment) is not Due.NOTHING)
        assert times.wakes <= next(due, inf)
        if self.sends:
            # The time that a client has, seen from outside; a blocked event loop is not its fault.
            quiet = max(self.quiet_since, self.changed)
            bound = 1.25 * timing.send_timeout + ROUNDING
            assert now <= quiet + (bound if self.visible else timing.send_timeout)
        if self.closed is not None:
            assert self.sends, "a stream is closed, waits for nothing, and is not over"
            assert now <= max(self.closed + timing.cleanup_timeout, self.changed)


AWatchedStream.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_a_watched_stream = AWatchedStream.TestCase
