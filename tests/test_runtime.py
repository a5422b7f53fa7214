"""What is asked of an event loop, on each that there is."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
import uvicorn

from sse_asgi import runtime, sse_app
from sse_asgi.hub import Hub
from sse_asgi.runtime.base import Whose, driven
from sse_asgi.runtime.native import NativeRuntime
from sse_asgi.testing import connect


async def stream_and_forget() -> weakref.ref[object]:
    hub = Hub()

    async def source() -> Any:
        yield "a"
        async for frame in hub.subscribe("t"):
            yield frame

    async with connect(sse_app(source)) as stream:
        await stream.receive()
    return weakref.ref(anyio.lowlevel.current_token().native_token)


def test_an_event_loop_is_not_kept(anyio_backend: str) -> None:
    """What is made for a loop goes with it: a test run with a loop for each test makes many."""
    ended = anyio.run(stream_and_forget, backend=anyio_backend)
    gc.collect()
    assert ended() is None


def test_an_event_loop_of_a_bare_task_is_not_kept() -> None:
    ended = asyncio.run(stream_and_forget())
    gc.collect()
    assert ended() is None


@pytest.mark.anyio
async def test_each_loop_has_one_runtime() -> None:
    assert runtime.current() is runtime.current()
    assert runtime.current().is_of(anyio.lowlevel.current_token().native_token)
    assert not runtime.current().is_of(None)


def test_a_bare_task_has_the_native_runtime() -> None:
    async def main() -> None:
        assert isinstance(runtime.of_task(), NativeRuntime)
        assert runtime.of_task() is runtime.of_task()
        with anyio.CancelScope():
            assert runtime.of_task() is runtime.current()
            await anyio.lowlevel.checkpoint()

    asyncio.run(main())


@pytest.mark.anyio
async def test_a_call_after_some_time() -> None:
    called: list[str] = []
    loop = runtime.current()
    loop.after(0.01, lambda: called.append("later"))
    loop.after(0, lambda: called.append("at once"))
    undo = loop.after(0.005, lambda: called.append("never"))
    undo()
    undo()
    loop.after(math.inf, lambda: called.append("never"))()
    with anyio.fail_after(5):
        while "later" not in called:
            await anyio.sleep(0.001)
    assert called == ["at once", "later"]
    undo()


@pytest.mark.anyio
async def test_calls_every_so_often() -> None:
    called: list[int] = []
    stop = runtime.current().every(0.001, lambda: called.append(len(called)))
    with anyio.fail_after(5):
        while len(called) < 3:
            await anyio.sleep(0.001)
    stop()
    before = len(called)
    await anyio.sleep(0.02)
    assert len(called) == before


@pytest.mark.anyio
async def test_a_call_from_a_thread() -> None:
    loop = runtime.current()
    called: list[tuple[str, int]] = []
    thread = threading.Thread(
        target=lambda: loop.from_thread(lambda it: called.append((it, threading.get_ident())), "a")
    )
    thread.start()
    thread.join()
    with anyio.fail_after(5):
        while not called:
            await anyio.sleep(0.001)
    assert called == [("a", threading.get_ident())]


def test_a_call_for_a_loop_that_is_closed_does_nothing(anyio_backend: str) -> None:
    async def main() -> tuple[Any, object]:
        return runtime.current(), anyio.lowlevel.current_token().native_token

    loop, kept = anyio.run(main, backend=anyio_backend)
    loop.from_thread(pytest.fail, "called")
    del kept
    gc.collect()
    loop.from_thread(pytest.fail, "called")


@pytest.mark.anyio
async def test_parked_until_somebody_wakes_it() -> None:
    wakes: list[Any] = []
    loop = runtime.current()
    loop.after(0.005, lambda: wakes[0]())
    with anyio.fail_after(5):
        await loop.parked(wakes.append)
    wakes[0]()  # nobody waits any more
    with anyio.move_on_after(0.005):
        await loop.parked(wakes.append)
    wakes[1]()  # it was cancelled


async def stream_on_uvicorn() -> weakref.ref[object]:
    async def source() -> Any:
        yield "a"

    server = uvicorn.Server(uvicorn.Config(sse_app(source), port=0, log_level="critical"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve)
        while not server.started:
            await anyio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with await anyio.connect_tcp("127.0.0.1", port) as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            received = b""
            while b"0\r\n\r\n" not in received:
                received += await client.receive()
        server.should_exit = True
    return weakref.ref(asyncio.get_running_loop())


def test_an_event_loop_of_a_server_is_not_kept() -> None:
    """The server that streams watched is let go with the last of them."""
    ended = anyio.run(stream_on_uvicorn)
    gc.collect()
    assert ended() is None


# -- a coroutine that is driven --------------------------------------------------------------------


async def sleeps() -> None:
    await anyio.sleep(0.001)


class Waits:
    """Counts what :func:`driven` tells of a coroutine."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.mark.anyio
async def test_a_coroutine_that_does_not_wait_is_driven_to_its_value() -> None:
    waits = Waits()

    async def value() -> str:
        return "value"

    assert await driven(value(), waits) == "value"
    assert waits.count == 0


@pytest.mark.anyio
async def test_a_function_is_called_when_it_waits_for_the_first_time() -> None:
    """Before anybody else may run, and no second time."""
    steps: list[str] = []
    loop = runtime.of_task()

    async def value() -> str:
        steps.append("begins")
        for _ in range(3):
            await anyio.sleep(0.001)
        steps.append("ends")
        return "value"

    async with anyio.create_task_group() as tasks:

        async def other() -> None:
            steps.append("another task")

        tasks.start_soon(other)
        assert await driven(value(), lambda: steps.append("waits"), loop.passes) == "value"
    assert steps == ["begins", "waits", "another task", "ends"]


@pytest.mark.anyio
async def test_what_only_lets_others_run_is_no_wait() -> None:
    loop, waits = runtime.of_task(), Waits()
    event = anyio.Event()

    async def passes() -> str:
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return "passes"

    async def waits_too() -> str:
        await passes()
        assert waits.count == 0
        event.set()  # a wait that is over before it begins
        await event.wait()
        assert waits.count == 0
        await anyio.sleep(0.001)
        return "waits"

    assert await driven(passes(), waits, loop.passes) == "passes"
    assert waits.count == 0
    assert await driven(passes(), waits) == "passes"
    assert waits.count == 1
    waits.count = 0
    assert await driven(waits_too(), waits, loop.passes) == "waits"
    assert waits.count == 1


@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.anyio
async def test_a_trap_that_trio_does_not_have_is_a_wait() -> None:
    loop = runtime.current()
    assert not loop.passes(None)
    assert not loop.passes(object())
    (trap,) = await traps_of(sleeps)
    assert not loop.passes(trap)


@pytest.mark.anyio
@pytest.mark.parametrize("waited", [False, True])
async def test_an_exception_of_a_driven_coroutine_leaves_as_itself(waited: bool) -> None:
    error, waits = LookupError(), Waits()

    async def fails() -> None:
        if waited:
            await anyio.sleep(0.001)
        raise error

    with pytest.raises(LookupError) as caught:
        await driven(fails(), waits, runtime.of_task().passes)
    assert caught.value is error
    assert error.__context__ is error.__cause__ is None
    assert waits.count == waited


@pytest.mark.anyio
async def test_a_driven_coroutine_is_cancelled_where_it_waits() -> None:
    """It may wait in its cleanup, and the cancellation goes on."""
    steps: list[str] = []
    thrown: list[BaseException] = []

    async def cleans_up() -> None:
        try:
            await anyio.sleep_forever()
        except BaseException as exc:
            thrown.append(exc)
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.001)
            steps.append("cleaned up")
            raise

    waits = Waits()
    with anyio.move_on_after(0.01) as scope:
        await driven(cleans_up(), waits)
        steps.append("went on")
    assert scope.cancelled_caught
    assert steps == ["cleaned up"]
    assert isinstance(thrown[0], runtime.of_task().cancelled)
    assert thrown[0].__context__ is None
    assert waits.count == 1


@pytest.mark.anyio
async def test_a_driven_coroutine_may_keep_a_cancellation() -> None:
    async def keeps() -> str:
        with anyio.move_on_after(0.005):
            await anyio.sleep_forever()
        await anyio.sleep(0.001)
        return "kept"

    waits = Waits()
    assert await driven(keeps(), waits) == "kept"
    assert waits.count == 1


@pytest.mark.anyio
async def test_an_exception_instead_of_a_cancellation_has_it_as_its_context() -> None:
    """That, and nothing of the function that drives it."""

    async def fails() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError

    with anyio.move_on_after(0.005), pytest.raises(LookupError) as caught:
        await driven(fails(), Waits())
    context = caught.value.__context__
    assert isinstance(context, runtime.of_task().cancelled)
    assert context.__context__ is None


def test_a_driven_coroutine_is_closed_with_it() -> None:
    steps: list[str] = []

    async def waits_for_ever() -> None:
        try:
            await asyncio.sleep(0)
            steps.append("went on")
        except GeneratorExit:
            steps.append("closed")
            raise
        finally:
            steps.append("cleaned up")

    waits = Waits()
    running = driven(waits_for_ever(), waits)
    assert running.send(None) is None
    running.close()
    assert steps == ["closed", "cleaned up"]
    assert waits.count == 1


def test_a_driven_coroutine_that_refuses_to_be_closed_is_an_error() -> None:
    async def goes_on() -> None:
        try:
            await asyncio.sleep(0)
        except GeneratorExit:
            await asyncio.sleep(0)

    running = driven(goes_on(), Waits())
    running.send(None)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        running.close()


def test_values_and_exceptions_are_handed_on_in_both_directions() -> None:
    error = LookupError()

    async def talks() -> list[object]:
        heard: list[object] = [await Ask("a")]
        try:
            await Ask("b")
        except LookupError as exc:
            heard.append(exc)
        heard.append(await Ask("c"))
        return heard

    running = driven(talks(), Waits())
    assert running.send(None) == "a"
    assert running.send(1) == "b"
    assert running.throw(error) == "c"
    with pytest.raises(StopIteration) as end:
        running.send(2)
    assert end.value.value == [1, error, 2]


class Ask:
    """An awaitable that asks the event loop for something."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self.what)


class Error(Exception):
    """One that can be referred to weakly."""


@pytest.mark.parametrize("kept", [True, False])
def test_an_exception_that_was_thrown_is_not_kept_in_a_cycle(kept: bool) -> None:
    async def waits() -> None:
        try:
            await Ask("")
        except Error:
            if not kept:
                raise

    gc.collect()
    gc.disable()
    try:
        running = driven(waits(), Waits())
        running.send(None)
        error = Error()
        thrown = weakref.ref(error)
        try:
            running.throw(error)
        except (StopIteration, Error):
            pass
        del error, running
        assert thrown() is None
    finally:
        gc.enable()


# -- who has cancelled a task ----------------------------------------------------------------------


def around(how: str) -> Any:
    """Return a scope around all the others."""
    outer = anyio.CancelScope(shield=how == "shielded")
    if how == "cancelled":
        outer.cancel()
    return outer


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("within", "whose"),
    [
        ([], Whose.OUTSIDE),
        (["open"], Whose.OUTSIDE),
        (["open", "group"], Whose.OUTSIDE),
        (["cancelled"], Whose.UNKNOWN),
        (["late"], Whose.UNKNOWN),
        (["cancelled", "open"], Whose.UNKNOWN),
        (["open", "cancelled"], Whose.UNKNOWN),
        (["shield"], Whose.INSIDE),
        (["shield", "cancelled"], Whose.INSIDE),
        (["shield", "late"], Whose.INSIDE),
        (["open", "shield", "open"], Whose.INSIDE),
        (["cancelled", "shield"], Whose.INSIDE),
    ],
)
async def test_whose_cancellation_it_is(within: list[str], whose: Whose) -> None:
    loop = runtime.current()
    seen: list[Whose] = []

    async def enter(scopes: list[str]) -> None:
        if not scopes:
            seen.append(loop.whose(scope, loop.task()))
            return
        first, *others = scopes
        if first == "group":
            async with anyio.create_task_group():
                await enter(others)
            return
        with anyio.CancelScope(shield=first == "shield") as inner:
            if first == "cancelled":
                inner.cancel()
            elif first == "late":
                inner.deadline = -math.inf
            await enter(others)

    with around("shielded"), around("cancelled"), loop.scope() as scope:
        await enter(within)
    assert seen == [whose]


@pytest.mark.anyio
async def test_a_shield_of_the_scope_itself_is_around_the_task_not_within() -> None:
    loop = runtime.current()
    with around("cancelled"), loop.scope(shield=True) as scope:
        assert loop.whose(scope, loop.task()) is Whose.OUTSIDE


@pytest.mark.anyio
async def test_a_scope_that_is_not_the_tasks_tells_nothing() -> None:
    loop = runtime.current()
    with around("cancelled"):
        assert loop.whose(loop.scope(), loop.task()) is Whose.UNKNOWN


def test_in_a_bare_task_only_a_shield_is_seen() -> None:
    async def main() -> None:
        loop = runtime.of_task()
        with loop.scope() as scope:
            assert isinstance(loop, NativeRuntime)
            assert loop.whose(scope, loop.task()) is Whose.UNKNOWN
            with anyio.CancelScope():
                assert loop.whose(scope, loop.task()) is Whose.UNKNOWN
                with anyio.CancelScope(shield=True), anyio.CancelScope():
                    assert loop.whose(scope, loop.task()) is Whose.INSIDE
                    await anyio.lowlevel.checkpoint()

    asyncio.run(main())


def test_the_scopes_of_another_task() -> None:
    async def main() -> None:
        loop = runtime.current()
        task = loop.task()
        with loop.scope() as scope:

            async def look() -> Whose:
                return loop.whose(scope, task)

            assert await asyncio.ensure_future(look()) is Whose.OUTSIDE

    asyncio.run(main())


@pytest.mark.parametrize(
    "task",
    [
        SimpleNamespace(),
        SimpleNamespace(_cancel_status=None),
        SimpleNamespace(_cancel_status=SimpleNamespace()),
        SimpleNamespace(
            _cancel_status=SimpleNamespace(_scope=SimpleNamespace(shield=False, cancel_called=True))
        ),
    ],
)
def test_another_trio_may_call_its_scopes_otherwise(task: Any) -> None:
    async def main() -> None:
        loop = runtime.current()
        with loop.scope() as scope:
            assert loop.whose(scope, task) is Whose.UNKNOWN

    trio.run(main)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_on_asyncio_a_task_group_is_cancelled_like_any_wait() -> None:
    async with anyio.create_task_group():
        for loop in (runtime.current(), runtime.of_task()):
            assert loop.groups(loop.task()) == []
            assert not loop.waits_for_group(loop.task())
            assert not loop.has_ended(None)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_whether_a_task_waits_for_the_end_of_a_task_group() -> None:
    loop = runtime.current()
    task = loop.task()
    seen: list[bool] = []

    looked = anyio.Event()

    async def look() -> None:
        for _ in range(3):
            seen.append(loop.waits_for_group(task))
            assert not loop.has_ended(loop.groups(task)[-1])
            looked.set()
            await anyio.wait_all_tasks_blocked()

    async with anyio.create_task_group() as tasks:
        assert not loop.waits_for_group(task)
        tasks.start_soon(look)
        await looked.wait()
    assert seen == [False, True, True]
    assert not loop.waits_for_group(SimpleNamespace(child_nurseries=[]))
    assert not loop.has_ended(SimpleNamespace())
    assert not loop.waits_for_group(SimpleNamespace(child_nurseries=[SimpleNamespace()]))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_the_task_groups_that_a_task_has_open() -> None:
    loop = runtime.current()

    def count() -> int:
        return len(loop.groups(loop.task()))

    before = count()
    async with anyio.create_task_group():
        assert count() == before + 1
        with anyio.CancelScope():
            async with trio.open_nursery():
                assert count() == before + 2
        assert count() == before + 1
    assert count() == before
    assert loop.groups(loop.task()) is not loop.groups(loop.task())  # it does not change


# -- what a task waits for -------------------------------------------------------------------------


async def traps_of(function: Callable[[], Coroutine[Any, Any, object]]) -> list[Any]:
    """Return what a coroutine gives to the event loop when it waits."""
    traps: list[Any] = []

    def passes(trap: Any) -> bool:
        traps.append(trap)
        return True

    await driven(function(), pytest.fail, passes)
    return traps


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_wait_for_a_task_that_was_cancelled_is_known() -> None:
    async def cancelled() -> None:
        child = asyncio.ensure_future(asyncio.sleep(10))
        await asyncio.sleep(0)
        child.cancel()
        with suppress(asyncio.CancelledError):
            await child

    async def pending() -> None:
        await asyncio.ensure_future(asyncio.sleep(0.001))

    async def future() -> None:
        await asyncio.wait([asyncio.ensure_future(asyncio.sleep(0.001))])

    for loop in (runtime.current(), runtime.of_task()):
        assert loop.knows_cancelled((await traps_of(cancelled))[-1])
        assert not loop.knows_cancelled((await traps_of(pending))[-1])
        assert not loop.knows_cancelled((await traps_of(future))[-1])
        assert not loop.knows_cancelled(None)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio_has_no_task_to_wait_for() -> None:
    loop = runtime.current()
    (trap,) = await traps_of(sleeps)
    assert not loop.knows_cancelled(trap)
    assert not loop.knows_cancelled(loop.task())
