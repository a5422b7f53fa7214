"""The cancel scope of asyncio's own means: when it cancels, how often, and where that ends."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import anyio
import anyio.to_thread
import pytest

from sse_asgi.runtime.asyncio import AGAIN
from sse_asgi.runtime.native import NativeScope

pytestmark = pytest.mark.anyio

#: Much longer than any test waits.
LONG = 10.0

#: When a shield is up, a little later than it is begun: a thread has a checkpoint before that.
SOON = 0.005


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Trio has scopes of its own."""
    backend: str = request.param
    return backend


@asynccontextmanager
async def later(function: Callable[[], object], seconds: float = 0) -> AsyncIterator[None]:
    """Call a function in another task, when this one waits; afterwards nothing may be left."""

    async def call() -> None:
        if seconds:
            await asyncio.sleep(seconds)
        function()

    task = asyncio.ensure_future(call())
    yield
    await task
    await nothing_is_left()


async def nothing_is_left() -> None:
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0.03)  # a timer that is left would cancel this


def now() -> float:
    return asyncio.get_running_loop().time()


# -- cancel ----------------------------------------------------------------------------------------


async def test_a_cancellation_by_another_task_ends_at_the_scope() -> None:
    scope = NativeScope()
    async with later(scope.cancel):
        with scope:
            await asyncio.sleep(LONG)
            raise AssertionError("it went on")
    assert scope.cancel_called
    assert scope.cancelled_caught


async def test_nothing_is_caught_where_nothing_was_cancelled() -> None:
    with NativeScope(deadline=now() + LONG) as scope:
        await asyncio.sleep(0)
    assert not scope.cancel_called
    assert not scope.cancelled_caught
    await nothing_is_left()


async def test_a_scope_that_was_cancelled_before_it_is_entered() -> None:
    """It cancels the first wait, and no earlier."""
    scope = NativeScope()
    scope.cancel()
    steps: list[str] = []
    with scope:
        steps.append("entered")
        await asyncio.sleep(LONG)
        steps.append("went on")
    assert steps == ["entered"]
    assert scope.cancelled_caught
    await nothing_is_left()


async def test_a_task_may_cancel_its_own_scope() -> None:
    """Then it is cancelled when it waits."""
    steps: list[str] = []
    with NativeScope() as scope:
        scope.cancel()
        steps.append("cancelled")
        await asyncio.sleep(LONG)
        steps.append("went on")
    assert steps == ["cancelled"]
    assert scope.cancelled_caught
    await nothing_is_left()


async def test_a_task_that_does_not_wait_any_more_is_not_cancelled() -> None:
    with NativeScope(again=0.001) as scope:
        scope.cancel()
    assert scope.cancel_called
    assert not scope.cancelled_caught
    await nothing_is_left()


async def test_a_scope_that_was_left_cancels_nobody() -> None:
    with NativeScope(deadline=now() + 0.01, again=0.001) as scope:
        pass
    await nothing_is_left()
    assert not scope.cancel_called
    scope.cancel()
    await nothing_is_left()
    scope = NativeScope(again=0.001)
    with scope:
        pass
    scope.deadline = now()
    await nothing_is_left()
    assert not scope.cancel_called


async def test_cancelling_it_twice_is_cancelling_it_once() -> None:
    scope, swallowed = NativeScope(again=LONG), 0

    def twice() -> None:
        scope.cancel()
        scope.cancel()

    async with later(twice):
        with scope:
            try:
                await asyncio.sleep(LONG)
            except asyncio.CancelledError:
                swallowed += 1
            await asyncio.sleep(0.02)
    assert swallowed == 1
    assert not scope.cancelled_caught


async def test_another_exception_leaves_as_itself() -> None:
    error = LookupError()
    scope = NativeScope()
    with pytest.raises(LookupError) as caught:
        async with later(scope.cancel):
            with scope:
                try:
                    await asyncio.sleep(LONG)
                except asyncio.CancelledError:
                    raise error from None
    assert caught.value is error
    assert not scope.cancelled_caught
    await nothing_is_left()


# -- a cancellation that was swallowed -------------------------------------------------------------


async def test_who_swallows_a_cancellation_is_cancelled_again() -> None:
    """Each time after the same pause, until it gives in."""
    scope = NativeScope(again=0.02)
    times: list[float] = []
    async with later(scope.cancel):
        with scope:
            while len(times) < 4:
                try:
                    await asyncio.sleep(LONG)
                    break
                except asyncio.CancelledError:
                    times.append(now())
                    if len(times) == 4:
                        raise
    assert scope.cancelled_caught
    assert all(after - before > 0.015 for before, after in pairwise(times))


async def test_who_swallows_a_cancellation_may_have_time_without_end() -> None:
    scope = NativeScope(again=math.inf)
    waited = False
    async with later(scope.cancel):
        with scope:
            try:
                await asyncio.sleep(LONG)
            except asyncio.CancelledError:
                await asyncio.sleep(0.25)
                waited = True
    assert waited
    assert not scope.cancelled_caught


# -- deadlines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["when it is made", "before it is entered", "within"])
async def test_a_deadline(when: str) -> None:
    deadline = now() + 0.02
    scope = NativeScope(deadline=deadline if when == "when it is made" else math.inf)
    if when == "before it is entered":
        scope.deadline = deadline
    with scope:
        if when == "within":
            scope.deadline = deadline
        assert scope.deadline == deadline
        await asyncio.sleep(LONG)
    assert now() > deadline - 0.005
    assert scope.cancel_called
    assert scope.cancelled_caught
    await nothing_is_left()


async def test_a_deadline_that_has_passed_when_the_scope_is_entered() -> None:
    entered = False
    with NativeScope(deadline=now() - 1) as scope:
        entered = True
        await asyncio.sleep(LONG)
    assert entered
    assert scope.cancelled_caught
    await nothing_is_left()


async def test_a_deadline_that_is_moved_nearer() -> None:
    with NativeScope(deadline=now() + LONG) as scope:
        scope.deadline = now() + 0.01
        await asyncio.sleep(LONG)
    assert scope.cancelled_caught


@pytest.mark.parametrize("to", [0.1, math.inf])
async def test_a_deadline_that_is_moved_away(to: float) -> None:
    begin = now()
    with NativeScope(deadline=begin + 0.02) as scope:
        scope.deadline = begin + to
        await asyncio.sleep(0.15)
    assert scope.cancelled_caught is (to < math.inf)
    assert now() - begin > 0.09


async def test_a_deadline_that_is_set_when_it_was_cancelled_changes_nothing() -> None:
    """Whoever swallows the cancellation is cancelled again no earlier and no later."""
    for deadline in (0.0, LONG, math.inf):
        scope = NativeScope(again=0.05)
        times: list[float] = []
        async with later(scope.cancel):
            with scope:
                while len(times) < 2:
                    try:
                        await asyncio.sleep(LONG)
                        break
                    except asyncio.CancelledError:
                        times.append(now())
                        if len(times) == 2:
                            raise
                    scope.deadline = now() + deadline
                    assert scope.deadline >= times[0] + deadline
        assert scope.cancelled_caught
        assert times[1] - times[0] > 0.045


async def test_a_deadline_that_comes_within_a_cancellation_is_no_second_one() -> None:
    scope = NativeScope(deadline=now() + 0.02, again=LONG)
    swallowed = 0
    async with later(scope.cancel):
        with scope:
            try:
                await asyncio.sleep(LONG)
            except asyncio.CancelledError:
                swallowed += 1
            await asyncio.sleep(0.05)
    assert swallowed == 1
    assert not scope.cancelled_caught


# -- scopes within scopes --------------------------------------------------------------------------


async def test_an_inner_scope_ends_what_is_within_it() -> None:
    outer = NativeScope()
    inner = NativeScope(outer=outer)
    steps: list[str] = []
    async with later(inner.cancel):
        with outer:
            with inner:
                await asyncio.sleep(LONG)
            steps.append("after the inner one")
            await asyncio.sleep(0)
            steps.append("and on")
    assert steps == ["after the inner one", "and on"]
    assert inner.cancelled_caught
    assert not outer.cancel_called
    assert not outer.cancelled_caught


@pytest.mark.parametrize("order", ["outer", "outer, inner", "inner, outer"])
async def test_an_outer_scope_ends_all_that_is_within_it(order: str) -> None:
    outer = NativeScope()
    inner = NativeScope(outer=outer)

    def cancel() -> None:
        for name in order.split(", "):
            {"outer": outer, "inner": inner}[name].cancel()

    steps: list[str] = []
    async with later(cancel):
        with outer:
            with inner:
                await asyncio.sleep(LONG)
            steps.append("after the inner one")
    assert steps == []
    assert outer.cancelled_caught
    assert not inner.cancelled_caught
    assert inner.cancel_called is ("inner" in order)


@pytest.mark.parametrize("again", [0.005, math.inf])
async def test_a_shield_keeps_the_outer_cancellation_out_until_its_scope_is_left(
    again: float,
) -> None:
    outer = NativeScope(again=again)
    inner = NativeScope(outer=outer)
    steps: list[str] = []
    async with later(outer.cancel):
        with outer:
            with inner:
                inner.shield = True
                assert inner.shield
                await asyncio.sleep(0.03)
                steps.append("shielded")
            steps.append("after the inner one")
            await asyncio.sleep(LONG)
            steps.append("went on")
    assert steps == ["shielded", "after the inner one"]
    assert outer.cancelled_caught
    assert not inner.cancelled_caught


async def test_a_shield_does_not_keep_the_cancellation_of_its_own_scope_out() -> None:
    outer = NativeScope()
    inner = NativeScope(outer=outer, deadline=now() + 0.02)
    inner.shield = True
    steps: list[str] = []
    async with later(outer.cancel):
        with outer:
            with inner:
                await asyncio.sleep(LONG)
            steps.append("after the inner one")
            await asyncio.sleep(LONG)
    assert steps == ["after the inner one"]
    assert inner.cancelled_caught
    assert outer.cancelled_caught


async def test_a_shield_that_is_put_up_after_the_cancellation_and_taken_down_again() -> None:
    outer = NativeScope(again=0.01)
    inner = NativeScope(outer=outer)
    steps: list[str] = []
    async with later(outer.cancel):
        with outer:
            with inner:
                try:
                    await asyncio.sleep(LONG)
                except asyncio.CancelledError:
                    inner.shield = True
                await asyncio.sleep(0.05)
                steps.append("shielded")
                inner.shield = False
                await asyncio.sleep(LONG)
                steps.append("went on")
    assert steps == ["shielded"]
    assert outer.cancelled_caught
    assert not inner.cancelled_caught


async def test_an_inner_scope_that_was_left_shields_nothing_any_more() -> None:
    outer = NativeScope()
    inner = NativeScope(outer=outer)
    with outer:
        with inner:
            inner.shield = True
        async with later(outer.cancel):
            await asyncio.sleep(LONG)
    assert outer.cancelled_caught
    await nothing_is_left()


async def test_a_scope_after_another_in_an_outer_one() -> None:
    """The outer one knows the one that is open."""
    outer = NativeScope(again=0.01)
    steps: list[str] = []
    async with later(outer.cancel):
        with outer:
            for name in ("first", "second"):
                inner = NativeScope(outer=outer)
                with inner:
                    inner.shield = True
                    await asyncio.sleep(0.02)
                    steps.append(name)
            await asyncio.sleep(LONG)
    assert steps == ["first", "second"]
    assert outer.cancelled_caught


# -- and Task.cancel() -----------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["task", "task, scope", "scope, task"])
async def test_a_cancellation_of_the_task_does_not_end_at_the_scope(order: str) -> None:
    scopes: list[NativeScope] = []

    async def run() -> None:
        with NativeScope() as scope:
            scopes.append(scope)
            await asyncio.sleep(LONG)

    task = asyncio.ensure_future(run())
    await asyncio.sleep(0)
    for name in order.split(", "):
        task.cancel() if name == "task" else scopes[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert task.cancelling() == 1  # those of the scope were taken back
    assert not scopes[0].cancelled_caught


async def test_a_task_that_was_cancelled_before_may_have_scopes() -> None:
    """What it has been told before is not taken for what happens within."""
    scopes: list[NativeScope] = []

    async def run() -> int:
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            with NativeScope(deadline=now() + 0.01) as scope:
                scopes.append(scope)
                await asyncio.sleep(LONG)
        current = asyncio.current_task()
        assert current is not None
        return current.cancelling()

    task = asyncio.ensure_future(run())
    await asyncio.sleep(0)
    task.cancel()
    assert await task == 1
    assert scopes[0].cancelled_caught


# -- and the shields of anyio ----------------------------------------------------------------------


async def in_a_shield(seconds: float) -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep(seconds)


async def in_a_shield_within_a_shield(seconds: float) -> None:
    with anyio.CancelScope(shield=True):
        with anyio.CancelScope(shield=True):
            await anyio.sleep(seconds / 2)
        await anyio.sleep(seconds / 2)


async def in_a_scope_within_a_shield(seconds: float) -> None:
    with anyio.CancelScope(shield=True), anyio.move_on_after(LONG):
        await anyio.sleep(seconds)


async def in_a_shield_within_a_scope(seconds: float) -> None:
    with anyio.move_on_after(LONG), anyio.CancelScope(shield=True):
        await anyio.sleep(seconds)


async def in_a_shield_that_is_put_up_late(seconds: float) -> None:
    with anyio.CancelScope() as scope:
        scope.shield = True
        await anyio.sleep(seconds)


async def in_a_thread(seconds: float) -> None:
    await anyio.to_thread.run_sync(time.sleep, seconds)


SHIELDS = [
    in_a_shield, in_a_shield_within_a_shield, in_a_scope_within_a_shield,
    in_a_shield_within_a_scope, in_a_shield_that_is_put_up_late, in_a_thread,
]  # fmt: skip

shields = pytest.mark.parametrize("shield", SHIELDS)


def cancelled_by(how: str, scope: NativeScope) -> Callable[[], object]:
    """Return a function that cancels a scope, at once or a little later."""
    if how == "cancel":
        return scope.cancel

    def set_deadline() -> None:
        scope.deadline = now() + 0.01

    return set_deadline


by_what = pytest.mark.parametrize("how", ["cancel", "deadline"])


@shields
@by_what
async def test_a_shield_of_anyios_keeps_a_cancellation_out(
    shield: Callable[[float], Awaitable[None]], how: str
) -> None:
    """It comes after the shield, at latest after :data:`AGAIN`."""
    scope = NativeScope()
    steps: list[str] = []
    async with later(cancelled_by(how, scope), SOON):
        with scope:
            begin = now()
            await shield(0.05)
            steps.append("shielded")
            assert now() - begin > 0.045
            after = now()
            await asyncio.sleep(LONG)
            steps.append("went on")
    assert steps == ["shielded"]
    assert now() - after < AGAIN + 1
    assert scope.cancelled_caught


@shields
@by_what
async def test_a_shield_that_is_longer_than_the_time_between_two_attempts(
    shield: Callable[[float], Awaitable[None]], how: str
) -> None:
    scope = NativeScope(again=0.01)
    steps: list[str] = []
    async with later(cancelled_by(how, scope), SOON):
        with scope:
            await shield(3 * AGAIN)
            steps.append("shielded")
            await asyncio.sleep(LONG)
            steps.append("went on")
    assert steps == ["shielded"]
    assert scope.cancelled_caught


@shields
async def test_the_scope_may_end_within_the_same_step_as_the_shield(
    shield: Callable[[float], Awaitable[None]],
) -> None:
    scope = NativeScope()
    async with later(scope.cancel, SOON):
        with scope:
            await shield(0.05)
    assert scope.cancel_called
    assert not scope.cancelled_caught
    await asyncio.sleep(2 * AGAIN)  # nor is there a timer that cancels this


@shields
async def test_renewed_it_cancels_the_next_wait_after_the_shield(
    shield: Callable[[float], Awaitable[None]],
) -> None:
    """Although it would not try again for a long time. In the shield that changes nothing."""
    scope = NativeScope(again=LONG)
    steps: list[str] = []

    async def shielded() -> None:
        await asyncio.sleep(0.02)
        scope.renew()

    renews = asyncio.ensure_future(shielded())
    async with later(scope.cancel, SOON):
        with scope:
            await shield(0.04)
            steps.append("shielded")
            scope.renew()
            steps.append("renewed")
            await asyncio.sleep(0)
            steps.append("went on")
    await renews
    assert steps == ["shielded", "renewed"]
    assert scope.cancelled_caught


async def test_what_no_shield_has_kept_back_is_not_renewed() -> None:
    """Whoever swallows a cancellation has the time that it was given."""
    scope = NativeScope(again=LONG)
    swallowed = 0
    async with later(scope.cancel, SOON):
        with scope:
            scope.renew()
            try:
                await asyncio.sleep(LONG)
            except asyncio.CancelledError:
                swallowed += 1
            scope.renew()
            await asyncio.sleep(0.02)
            await in_a_shield(0.02)
            scope.renew()
            await asyncio.sleep(0.02)
    assert swallowed == 1
    assert not scope.cancelled_caught


async def test_a_scope_that_was_not_cancelled_is_not_renewed() -> None:
    with NativeScope(again=0.001) as scope:
        scope.renew()
        await in_a_shield(0.01)
        scope.renew()
        await asyncio.sleep(0.01)
    assert not scope.cancel_called
    scope.renew()
    await nothing_is_left()


async def test_both_kinds_of_shields_keep_an_outer_scope_out() -> None:
    outer = NativeScope(again=0.01)
    inner = NativeScope(outer=outer, shield=True)
    steps: list[str] = []
    async with later(outer.cancel):
        with outer:
            with inner:
                await in_a_shield(0.03)
                steps.append("both")
                await asyncio.sleep(0.03)
                steps.append("ours")
            await in_a_shield(0.03)
            steps.append("anyio's")
            await asyncio.sleep(LONG)
    assert steps == ["both", "ours", "anyio's"]
    assert outer.cancelled_caught
    assert not inner.cancelled_caught


async def test_the_deadline_of_an_inner_scope_waits_for_a_shield_of_anyios() -> None:
    """And ends at that scope, although an outer one was cancelled too."""
    outer = NativeScope()
    inner = NativeScope(outer=outer, shield=True, deadline=now() + 0.01)
    steps: list[str] = []
    async with later(outer.cancel):
        with outer:
            with inner:
                await in_a_shield(0.05)
                steps.append("shielded")
                await asyncio.sleep(LONG)
            steps.append("after the inner one")
            await asyncio.sleep(LONG)
    assert steps == ["shielded", "after the inner one"]
    assert inner.cancelled_caught
    assert outer.cancelled_caught


async def test_no_shield_of_anyios_keeps_the_cancellation_of_a_task_out() -> None:
    """That is how it is with ``Task.cancel()``, and the scope changes nothing about it."""
    scopes: list[NativeScope] = []

    async def run() -> None:
        with NativeScope() as scope:
            scopes.append(scope)
            with anyio.CancelScope(shield=True):
                await asyncio.sleep(LONG)

    task = asyncio.ensure_future(run())
    await asyncio.sleep(0)
    scopes[0].cancel()
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    await asyncio.wait([task], timeout=LONG)
    assert task.cancelled()
    assert not scopes[0].cancelled_caught


@pytest.mark.parametrize("missing", ["the module", "the list of tasks", "the scope", "the parent"])
async def test_another_anyio_may_call_its_shields_otherwise(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then a shield may be broken, and nothing else."""

    class State:
        """What is known of a task."""

    class Scope:
        shield = False

    task = asyncio.current_task()
    with monkeypatch.context() as patched:
        backend = "anyio._backends._asyncio"
        if missing == "the module":
            patched.delitem(sys.modules, backend)
        elif missing == "the list of tasks":
            patched.delattr(sys.modules[backend], "_task_states")
        else:
            state = State()
            if missing == "the parent":
                state.cancel_scope = Scope()  # type: ignore[attr-defined]
            patched.setattr(sys.modules[backend], "_task_states", {task: state})
        scope = NativeScope()
        async with later(scope.cancel, SOON):
            with scope:
                await asyncio.sleep(LONG)
        assert scope.cancelled_caught
        scope = NativeScope(deadline=now() + 0.01)
        with scope:
            scope.renew()
            await asyncio.sleep(LONG)
        assert scope.cancelled_caught
