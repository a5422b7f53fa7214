"""How events are joined. The pump is stepped by hand and time is exact: there is no event loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_asgi.options import StreamOptions
from sse_asgi.supervisor import pump as module
from sse_asgi.supervisor.deadlines import Deadlines
from sse_asgi.supervisor.life import Life
from sse_asgi.supervisor.pump import ALONE, JOINED_BYTES, JOINED_EVENTS, Pump
from sse_asgi.supervisor.response import ClientGone

#: The times of the policy, about as they are, but sums of them are exact.
QUICK, JOINED_FOR, LOOP_RUNS = 2**-11, 2**-9, 2**-8

#: A little less than any of them.
LITTLE = 2**-20

#: What the pump waits for, as the host sees it.
SOURCE, CLIENT, WATCHDOG, LOOP = "source", "client", "watchdog", "loop"


class Cancelled(BaseException):
    """What an event loop throws into what waits."""


class Trap:
    """An awaitable that waits so many times."""

    def __init__(self, name: str, times: int = 1) -> None:
        self.name, self.times = name, times

    def __await__(self) -> Generator[str, None, None]:
        for _ in range(self.times):
            yield self.name


class Step(NamedTuple):
    """How a source comes to its next event, or to its end."""

    #: The event, or an exception.
    event: Any
    #: How many seconds that takes.
    takes: float = 0
    #: How often the source waits for that.
    waits: int = 0


class Source:
    """A source that does what it is told, and notes what had been written when it was asked."""

    def __init__(self, steps: Iterable[Step], world: World) -> None:
        self.steps = iter(steps)
        self.world = world

    async def step(self) -> bytes:
        self.world.asked()
        step = next(self.steps, Step(StopAsyncIteration()))
        self.world.now += step.takes
        await Trap(SOURCE, step.waits)
        if isinstance(step.event, BaseException):
            raise step.event
        if step.waits:
            self.world.waited_for = len(self.world.yielded) + 1
        self.world.yielded.append(step.event)
        frame: bytes = step.event
        return frame

    def give_to(self, receiver: object) -> None: ...

    async def aclose(self) -> None: ...


class Server:
    sends_at_once = False

    def is_lost(self) -> bool:
        return False


class Response:
    """A response that notes each frame and who has sent it."""

    def __init__(self, world: World, times: Deadlines, *, at_once: bool) -> None:
        self.world, self.times = world, times
        self.server = Server()
        self.server.sends_at_once = at_once
        self.send = self.send_message
        self.flushing = self.torn = self.ended = self.prompt = False
        self.codec = None
        self.events = self.bytes = 0
        #: Whether the client reads; and how often the host waits for one that does not.
        self.reads, self.slow = True, 1
        #: What happens when the last event was sent that goes on its own.
        self.happens: Callable[[], object] = lambda: None
        self.written: list[bytes] = []
        #: How many events were written.
        self.count = 0
        self.by: list[str] = []
        self.backlog: list[tuple[bytes, int]] = []

    def clock(self) -> float:
        return self.world.now

    def note(self, frame: bytes, by: str) -> None:
        self.written.append(frame)
        self.by.append(by)
        self.count += frame.count(b"\n\n")
        if self.count == ALONE:
            self.happens()

    async def send_message(self, message: Any) -> None:
        """Send what the pump sends by itself, without ``write``."""
        assert message["type"] == "http.response.body"
        assert message["more_body"] is True
        assert not self.flushing
        if not self.reads:
            self.prompt = False  # the host sees that
            await Trap(CLIENT, self.slow)
        self.note(message["body"], "send")

    def try_write(self, frame: bytes, events: int) -> bool:
        if not self.server.sends_at_once or self.flushing or not self.reads:
            return False
        assert self.times.sending_since is None, "two messages are sent at a time"
        self.note(frame, "try_write")
        self.prompt = True
        self.events += events
        return True

    async def write(self, held: list[bytes]) -> None:
        """Take the frames when they are sent, as the real one does, or have failed to be."""
        while self.flushing:
            await Trap(WATCHDOG)
        frame = b"".join(held)
        self.times.sending_since = self.world.now
        self.prompt = self.reads
        try:
            if not self.reads:
                await Trap(CLIENT, self.slow)
        except Exception as exc:
            held.clear()
            self.fail(exc)
            raise
        except BaseException:
            self.interrupted()
            raise
        assert b"".join(held) == frame, "something came to it while it was sent"
        self.times.sending_since = None
        self.note(frame, "write")
        self.events += len(held)
        held.clear()

    def interrupted(self) -> None:
        """Note that a send was interrupted: a server that sends at once has written nothing."""
        self.times.sending_since = None
        self.torn = not self.server.sends_at_once

    def fail(self, error: Exception) -> None:
        """Note that a send has raised."""
        self.times.sending_since = None
        self.ended = True
        if isinstance(error, OSError):
            raise ClientGone from None

    def hand_over(self, frame: bytes, events: int = 0) -> None:
        self.backlog.append((frame, events))
        self.flushing = True

    def stop_reading(self) -> None:
        self.reads = False

    def begin_to_flush(self) -> None:
        self.flushing = True

    def flush(self) -> None:
        """Do what the watchdog does."""
        for frame, events in self.backlog:
            self.note(frame, "watchdog")
            self.events += events
        self.backlog.clear()
        self.flushing = False


class World:
    """A pump, with everything around it, and a host that steps it."""

    def __init__(
        self,
        steps: Iterable[Step],
        monkeypatch: pytest.MonkeyPatch,
        *,
        at_once: bool = True,
        joins: bool = True,
    ) -> None:
        self.now = 1000.0
        self.yielded: list[bytes] = []
        #: How many events had been yielded when the source had waited last.
        self.waited_for = 0
        #: What is seen when something happens: what waits, and how often that was.
        self.traps: list[str] = []
        monkeypatch.setattr(module, "monotonic", lambda: self.now)
        monkeypatch.setattr(module, "checkpoint", lambda: Trap(LOOP))
        for name, value in (("QUICK", QUICK), ("JOINED_FOR", JOINED_FOR), ("LOOP_RUNS", LOOP_RUNS)):
            monkeypatch.setattr(module, name, value)
        self.life = Life()
        self.times = times = Deadlines(StreamOptions().timing, self.now)
        times.started = True
        self.response = Response(self, times, at_once=at_once)
        source: Any = Source(steps, self)
        response: Any = self.response
        self.pump = Pump(source, response, self.life, times)
        self.running = self.pump.run(lambda event, sep: event, "\n", joins=joins)
        self.ended = False

    def asked(self) -> None:
        """Check what was written when the source is asked for its next event."""
        missing = len(self.yielded) - self.response.count
        assert missing == len(self.pump.held)
        if self.waited_for == len(self.yielded):  # it has waited for the last one
            assert missing == 0

    def step(self, error: BaseException | None = None) -> str | None:
        """Let the pump run until it waits, and do what the host does then."""
        try:
            trap: Any = self.running.throw(error) if error else self.running.send(None)
        except StopIteration:
            self.ended = True
            return None
        self.traps.append(trap)
        if self.pump.stepping:
            self.pump.waited = True
            if self.pump.held:
                self.pump.about_to_wait()
        assert self.pump.stepping == (trap == SOURCE)
        return str(trap)

    def run(self) -> World:
        """Let the pump run to its end; the watchdog sends what is handed over to it."""
        while self.step() is not None:
            self.response.flush()
        return self

    @property
    def sizes(self) -> list[int]:
        """How many events were written at a time."""
        return [frame.count(b"\n\n") for frame in self.response.written]


def frames(count: int, size: int = 0) -> list[bytes]:
    """Return frames that differ, each of so many bytes."""
    return [(b"%d" % number).ljust(size - 2) + b"\n\n" for number in range(count)]


def ready(count: int, takes: float = 0) -> list[Step]:
    """Return steps of a source that need not wait."""
    return [Step(frame, takes) for frame in frames(count)]


@pytest.fixture(params=[True, False], ids=["at once", "by a task"])
def at_once(request: pytest.FixtureRequest) -> bool:
    """Whether the server takes a message without waiting."""
    at_once: bool = request.param
    return at_once


# -- what is joined --------------------------------------------------------------------------------


def test_the_first_events_go_on_their_own(monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    world = World(ready(ALONE + 10), monkeypatch, at_once=at_once).run()
    assert world.sizes == [1] * ALONE + [10]
    assert b"".join(world.response.written) == b"".join(frames(ALONE + 10))
    assert set(world.response.by) == {"try_write" if at_once else "write"}
    assert world.response.events == ALONE + 10
    assert world.traps == []


def test_as_many_events_are_joined_as_may_be(
    monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    count = ALONE + 2 * JOINED_EVENTS + 1
    world = World(ready(count), monkeypatch, at_once=at_once).run()
    assert world.sizes == [1] * ALONE + [JOINED_EVENTS, JOINED_EVENTS, 1]


@pytest.mark.parametrize(("missing", "sizes"), [(0, [8, 8, 1]), (1, [9, 8])])
def test_as_many_bytes_are_joined_as_may_be(
    missing: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame that reaches the bound is the last of those that are joined."""
    each = JOINED_BYTES // 8
    events = [*frames(ALONE), frames(1, each - missing)[0], *frames(16, each)]
    world = World(map(Step, events), monkeypatch).run()
    assert world.sizes[ALONE:] == sizes
    assert b"".join(world.response.written) == b"".join(events)


def test_a_frame_that_is_large_by_itself_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [*frames(ALONE), *frames(3, JOINED_BYTES), *frames(2)]
    assert World(map(Step, events), monkeypatch).run().sizes == [1] * (ALONE + 3) + [2]


def test_events_are_joined_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first that is held comes at 0, and the one that comes at JOINED_FOR is the last with it.
    each = JOINED_FOR / 8
    world = World(ready(ALONE + 20, each), monkeypatch).run()
    assert world.sizes == [1] * ALONE + [9, 9, 2]
    world = World(ready(ALONE + 20, each - LITTLE), monkeypatch).run()
    assert world.sizes == [1] * ALONE + [10, 10]


def test_an_event_that_is_not_quick_goes_alone_again(monkeypatch: pytest.MonkeyPatch) -> None:
    quick, slow = Step(b"q\n\n", QUICK), Step(b"s\n\n", QUICK + LITTLE)
    assert World([quick] * (ALONE + 3), monkeypatch).run().sizes == [1] * ALONE + [3]
    assert World([slow] * 20, monkeypatch).run().sizes == [1] * 20
    # It goes with what is held, and is the first of those that go on their own.
    steps = [*ready(ALONE + 3), slow, *ready(ALONE - 1 + 5)]
    world = World(steps, monkeypatch).run()
    assert world.sizes == [1] * ALONE + [4] + [1] * (ALONE - 1) + [5]


def test_nothing_is_joined_if_the_event_loop_does_not_let_it(
    monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    world = World(ready(100), monkeypatch, at_once=at_once, joins=False).run()
    assert world.response.written == frames(100)


def test_an_event_that_the_source_has_waited_for_goes_on_its_own(
    monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    steps = [step._replace(waits=number % 3) for number, step in enumerate(ready(60))]
    world = World(steps, monkeypatch, at_once=at_once).run()
    assert world.response.written == frames(60)
    # Such an event is sent without one coroutine more.
    assert "send" in world.response.by


# -- what is held ----------------------------------------------------------------------------------


def held(monkeypatch: pytest.MonkeyPatch, *then: Step, at_once: bool = True) -> World:
    """Return a pump that holds three events when the source does something else."""
    return World([*ready(ALONE + 3), *then], monkeypatch, at_once=at_once)


def test_what_is_held_is_sent_before_the_source_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    world = held(monkeypatch, Step(b"later\n\n", waits=2))
    assert world.step() == SOURCE
    assert world.sizes == [1] * ALONE + [3]
    assert world.response.by[-1] == "try_write"
    assert world.response.events == ALONE + 3
    assert world.pump.held == []
    assert world.run().sizes == [1] * ALONE + [3, 1]


@pytest.mark.parametrize("why", ["the server waits", "the client does not read"])
def test_else_what_is_held_is_handed_over(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = held(monkeypatch, Step(b"later\n\n", waits=1), at_once=why != "the server waits")
    response = world.response
    if why == "the client does not read":
        response.happens = response.stop_reading
    assert world.step() == SOURCE
    assert response.backlog == [(b"".join(frames(ALONE + 3)[ALONE:]), 3)]
    assert world.pump.held == []
    # The next event comes while the watchdog is still sending, and waits for that.
    assert world.step() == WATCHDOG
    assert world.pump.held == [b"later\n\n"]
    response.reads = True
    response.flush()
    assert world.step() is None
    assert b"".join(response.written) == b"".join([*frames(ALONE + 3), b"later\n\n"])
    assert response.events == ALONE + 4


def test_what_is_held_is_still_there_if_the_wait_for_the_watchdog_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    world = World([Step(b"a\n\n"), Step(b"b\n\n")], monkeypatch, at_once=at_once)
    world.response.flushing = True  # a ping, say
    assert world.step() == WATCHDOG
    with pytest.raises(Cancelled):
        world.step(Cancelled())
    assert world.response.written == []
    assert world.pump.held == [b"a\n\n"]
    assert world.response.events == 0
    assert world.pump.take_held() == (b"a\n\n", 1)
    assert world.pump.held == []
    assert world.pump.take_held() == (b"", 0)
    assert world.response.events == 0  # they count when they were sent


def test_what_was_interrupted_is_kept_if_it_was_not_written(
    monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Whether it was is known of a server that sends at once. Else the response is torn."""
    world = World(ready(2), monkeypatch, at_once=at_once)
    world.response.reads = False
    assert world.step() == CLIENT
    assert world.pump.held == frames(1)
    with pytest.raises(Cancelled):
        world.step(Cancelled())
    assert world.response.torn is not at_once
    assert world.pump.take_held() == (frames(1)[0], 1)
    assert world.response.written == []
    assert world.response.events == 0


def waited_for(monkeypatch: pytest.MonkeyPatch, *then: Step) -> World:
    """Return a pump whose client does not take the event that the source has waited for.

    The pump sends such an event by itself.
    """
    world = World([Step(b"a\n\n"), Step(b"b\n\n", waits=1), *then], monkeypatch)
    assert world.step() == SOURCE
    world.response.reads = False
    assert world.step() == CLIENT
    assert world.response.by == ["try_write"]
    assert world.times.sending_since == world.now
    return world


def test_an_event_that_was_waited_for_and_interrupted_is_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = waited_for(monkeypatch)
    assert world.pump.held == []
    with pytest.raises(Cancelled):
        world.step(Cancelled())
    assert world.times.sending_since is None
    assert world.response.torn is False
    assert world.pump.take_held() == (b"b\n\n", 1)
    assert world.response.written == [b"a\n\n"]
    assert world.response.events == 1
    assert world.response.bytes == 0


@pytest.mark.parametrize(
    ("error", "raised"), [(ConnectionResetError(), ClientGone), (ValueError("bad"), ValueError)]
)
def test_an_event_whose_send_has_failed_is_not_sent_again(
    error: Exception, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = waited_for(monkeypatch)
    with pytest.raises(raised):
        world.step(error)
    assert world.times.sending_since is None
    assert world.response.ended
    assert world.pump.take_held() == (b"", 0)
    assert world.response.written == [b"a\n\n"]
    assert world.response.events == 1


@pytest.mark.parametrize(
    ("error", "raised"), [(ConnectionResetError(), ClientGone), (ValueError("bad"), ValueError)]
)
def test_what_is_held_is_not_sent_again_if_its_send_has_failed(
    error: Exception, raised: type[Exception], monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    world = World(ready(2), monkeypatch, at_once=at_once)
    world.response.reads = False
    assert world.step() == CLIENT
    with pytest.raises(raised):
        world.step(error)
    assert world.response.ended
    assert world.response.written == []
    assert world.pump.held == []


def test_the_event_after_one_that_the_client_took_late_is_sent_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = waited_for(monkeypatch, Step(b"c\n\n", waits=1))
    world.response.reads = True
    assert world.step() == SOURCE
    assert world.times.sending_since is None
    assert world.step() is None
    assert world.response.written == [b"a\n\n", b"b\n\n", b"c\n\n"]
    assert world.response.by == ["try_write", "send", "try_write"]
    assert world.response.events == 3
    assert world.response.bytes == 3  # write() and try_write() count their own


def test_the_watchdog_is_woken_to_look_at_a_client_that_does_not_take_an_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = waited_for(monkeypatch)
    assert world.times.wakes == world.now + world.times.timing.looks


@pytest.mark.parametrize("error", [StopAsyncIteration, ValueError])
@pytest.mark.parametrize("client", ["reads", "does not read", "gets a ping"])
def test_what_was_yielded_before_the_end_is_sent_before_it(
    error: type[Exception], client: str, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    world = held(monkeypatch, Step(error()), at_once=at_once)
    response = world.response
    if client != "reads":
        response.happens = (
            response.stop_reading if client == "does not read" else response.begin_to_flush
        )
        trap = world.step()
        assert trap == (CLIENT if client == "does not read" else WATCHDOG)
        assert world.sizes == [1] * ALONE
        response.flush()
    if error is StopAsyncIteration:
        assert world.step() is None
    else:
        with pytest.raises(error):
            world.step()
    assert world.sizes == [1] * ALONE + [3]
    assert world.response.events == ALONE + 3
    assert not world.pump.stepping


def test_an_event_that_is_none_comes_after_those_before_it(
    monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    world = held(monkeypatch, Step(b"bad\n\n"), at_once=at_once)

    def encode(event: Any, sep: str) -> bytes:
        if event == b"bad\n\n":
            raise TypeError(event)
        return bytes(event)

    world.running.close()
    world.running = world.pump.run(encode, "\n", joins=True)
    with pytest.raises(TypeError):
        world.step()
    assert world.sizes == [1] * ALONE + [3]


def test_an_event_that_comes_when_the_stream_is_closing_is_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = held(monkeypatch, Step(b"bye\n\n", waits=1))
    assert world.step() == SOURCE
    world.life.end()
    assert world.step() is None
    assert world.pump.unsent == b"bye\n\n"
    assert world.sizes == [1] * ALONE + [3]


# -- a source that never waits ---------------------------------------------------------------------


def test_the_event_loop_runs_although_the_source_never_waits(
    monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    each = QUICK + LITTLE  # too slow to be joined
    steps = [Step(frame, each) for frame in frames(40)]
    world = World(steps, monkeypatch, at_once=at_once)
    ran: list[float] = [1000 + each]  # the first event
    while (trap := world.step()) is not None:
        assert trap == LOOP
        ran.append(world.now)
    # With the first event that comes so late, after the last time.
    between = {later - earlier for earlier, later in itertools.pairwise(ran)}
    assert between == {each * -(-LOOP_RUNS // each)}
    assert len(ran) == 1 + 39 // round(between.pop() / each)
    assert world.response.written == frames(40)


def test_the_event_loop_runs_at_that_time_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    after = [Step(b"a\n\n"), Step(b"b\n\n", LOOP_RUNS), Step(b"c\n\n", LOOP_RUNS - LITTLE)]
    world = World([*after, Step(b"d\n\n", LITTLE)], monkeypatch)
    assert world.step() == LOOP
    assert world.sizes == [1, 1]
    assert world.step() == LOOP
    assert world.sizes == [1, 1, 1, 1]
    assert world.step() is None


def test_the_event_loop_runs_although_events_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    each = 2**-16
    world = World([Step(frame, each) for frame in frames(2000)], monkeypatch)
    ran = [world.now]
    while world.step() == LOOP:
        ran.append(world.now)
    assert max(later - earlier for earlier, later in itertools.pairwise(ran)) <= (
        LOOP_RUNS + JOINED_FOR + ALONE * each
    )
    assert len(ran) > 2000 * each / (LOOP_RUNS + JOINED_FOR)


def test_the_time_of_the_event_loop_begins_anew_when_the_source_has_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Step(b"a\n\n", LOOP_RUNS - LITTLE)
    waits = step._replace(waits=1)
    # The time runs from the second event after a wait, and is not over with the third.
    world = World([waits, step, step] * 10, monkeypatch).run()
    assert set(world.traps) == {SOURCE}
    world = World([waits, step, step, step] * 10, monkeypatch).run()
    assert world.traps.count(LOOP) == 10


# -- any pattern -----------------------------------------------------------------------------------

TAKES = st.sampled_from([0.0, 0.0, 0.0, LITTLE, QUICK, QUICK + LITTLE, JOINED_FOR, LOOP_RUNS, 1.0])

#: So many events, how long each takes, how often the source waits for it, and its size.
RUNS = st.tuples(
    st.integers(1, JOINED_EVENTS + 10) | st.integers(1, 2 * ALONE),
    TAKES,
    st.sampled_from([0, 0, 1, 2]),
    st.just(0),
) | st.tuples(
    st.integers(1, 2 * ALONE),
    TAKES,
    st.just(0),
    st.sampled_from([100, JOINED_BYTES // 3, JOINED_BYTES]),
)


@given(
    runs=st.lists(RUNS, max_size=8),
    at_once=st.booleans(),
    joins=st.booleans(),
    end=st.sampled_from([StopAsyncIteration, ValueError]),
    # Whether the client reads, and whether the watchdog has sent what it has, when the host waits.
    meanwhile=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30),
)
@settings(max_examples=100, deadline=None)
def test_every_event_is_written_once_and_in_order(
    runs: list[tuple[int, float, int, int]],
    at_once: bool,
    joins: bool,
    end: type[Exception],
    meanwhile: list[tuple[bool, bool]],
) -> None:
    number = itertools.count()
    steps = [
        Step((b"%d" % next(number)).ljust(size - 2) + b"\n\n", takes, waits)
        for count, takes, waits, size in runs
        for _ in range(count)
    ]
    events = [step.event for step in steps]
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = World([*steps, Step(end())], monkeypatch, at_once=at_once, joins=joins)
        response = world.response
        do = iter(meanwhile)
        try:
            while (trap := world.step()) is not None:
                if trap == SOURCE:  # it gets what there was before, one way or another
                    assert world.pump.held == []
                    handed_over = sum(events for _, events in response.backlog)
                    assert response.count + handed_over == len(world.yielded)
                response.reads, flushes = next(do, (True, True))
                if flushes:
                    response.flush()
        except ValueError:
            assert end is ValueError
        else:
            assert end is StopAsyncIteration
        response.flush()
        assert b"".join(response.written) == b"".join(events)
        assert world.yielded == events
        assert world.pump.held == []
        assert joins or max(world.sizes, default=1) == 1
        assert response.events == len(events)
        for frame in response.written:
            assert frame.count(b"\n\n") <= JOINED_EVENTS
            *others, _ = frame.split(b"\n\n")[:-1]
            assert sum(len(other) + 2 for other in others) < JOINED_BYTES


@given(
    runs=st.lists(RUNS, min_size=1, max_size=8),
    at_once=st.booleans(),
    meanwhile=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30),
    interrupted=st.integers(1, 30),
)
@settings(max_examples=100, deadline=None)
def test_no_event_is_lost_or_doubled_if_the_stream_is_interrupted(
    runs: list[tuple[int, float, int, int]],
    at_once: bool,
    meanwhile: list[tuple[bool, bool]],
    interrupted: int,
) -> None:
    """What was written, what was handed over, and what is held: that is all there was."""
    number = itertools.count()
    steps = [
        Step((b"%d" % next(number)).ljust(size - 2) + b"\n\n", takes, waits)
        for count, takes, waits, size in runs
        for _ in range(count)
    ]
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = World(steps, monkeypatch, at_once=at_once)
        response = world.response
        do = iter(meanwhile)
        while (trap := world.step()) is not None and len(world.traps) < interrupted:
            response.reads, flushes = next(do, (True, True))
            if flushes:
                response.flush()
        if trap is not None:
            with pytest.raises(Cancelled):
                world.step(Cancelled())
        assert world.times.sending_since is None
        assert response.torn is (trap == CLIENT and not at_once)
        backlog = b"".join(frame for frame, _ in response.backlog)
        handed_over = sum(events for _, events in response.backlog)
        held, events = world.pump.take_held()
        assert b"".join(response.written) + backlog + held == b"".join(world.yielded)
        assert response.events + handed_over + events == len(world.yielded)
