"""How many instructions of the processor something takes: a count, whatever else a machine does.

``python -m tests.instructions`` runs under cachegrind, which tells the total of each process when
it ends. So each figure is of two processes, forked when all is loaded, of which one does it more
often. Everything is measured beside what one would write by hand for just this.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any
from unittest.mock import patch

from sse_asgi import Observer, ServerSentEvent, Tally, sse_app
from sse_asgi.encoder import encode
from sse_asgi.hub import Hub
from sse_asgi.supervisor import pump

from .at_once import Cycle
from .streams import http_scope

FEW, MANY = 200, 600

#: What takes long is done a tenth as often.
TENTH = 10

data, name, id_, comment = "hello world, this is a token", "tick", "1234", "a comment"
retry = 3000

Action = Callable[[int], object]

#: What all metrics are made of.
TALLY = Tally()


def times(function: Callable[[], object]) -> Action:
    def act(count: int) -> None:
        for _ in range(count):
            function()

    return act


def lines(text: str) -> str:
    """Join the lines of data, as one writes it who knows that there may be several."""
    return text.replace("\n", "\ndata: ") if "\n" in text else text


def raw(text: str) -> bytes:
    return f"data: {lines(text)}\n\n".encode()


#: An event, built and encoded; and an f-string for just these fields.
ENCODED: dict[str, tuple[Callable[[], bytes], Callable[[], bytes]]] = {
    "a str": (lambda: encode(data), lambda: raw(data)),
    "a dict of 1": (lambda: encode({"data": data}), lambda: raw(data)),
    "a dict of 2": (
        lambda: encode({"event": name, "data": data}),
        lambda: f"event: {name}\ndata: {lines(data)}\n\n".encode(),
    ),
    "a dict of 3": (
        lambda: encode({"id": id_, "event": name, "data": data}),
        lambda: f"id: {id_}\nevent: {name}\ndata: {lines(data)}\n\n".encode(),
    ),
    "a dict of 4": (
        lambda: encode({"id": id_, "event": name, "data": data, "retry": retry}),
        lambda: f"id: {id_}\nevent: {name}\ndata: {lines(data)}\nretry: {retry}\n\n".encode(),
    ),
    "a dict of 5": (
        lambda: encode(
            {"comment": comment, "id": id_, "event": name, "data": data, "retry": retry}
        ),
        lambda: (
            f": {comment}\nid: {id_}\nevent: {name}\n"
            f"data: {lines(data)}\nretry: {retry}\n\n".encode()
        ),
    ),
    "a ServerSentEvent of 1": (lambda: encode(ServerSentEvent(data)), lambda: raw(data)),
    "a ServerSentEvent of 3": (
        lambda: encode(ServerSentEvent(data, event=name, id=id_)),
        lambda: f"id: {id_}\nevent: {name}\ndata: {lines(data)}\n\n".encode(),
    ),
}


class Beside:
    """Something else that happens in the event loop, for a source to wait for."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        loop.call_soon(self._waiting.set_result, None)
        await self._waiting


async def waits(count: int) -> AsyncIterator[Any]:
    beside = Beside()
    for _ in range(count):
        await beside.wait()
        yield {"id": id_, "event": name, "data": data}


async def never_waits(count: int) -> AsyncIterator[Any]:
    for _ in range(count):
        yield {"id": id_, "event": name, "data": data}


async def by_hand(source: AsyncIterator[Any], cycle: Cycle) -> None:
    send = cycle.send
    await send({"type": "http.response.start", "status": 200, "headers": []})
    async for event in source:
        frame = f"id: {event['id']}\nevent: {event['event']}\ndata: {event['data']}\n\n".encode()
        await send({"type": "http.response.body", "body": frame, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def ours(source: AsyncIterator[Any], cycle: Cycle) -> None:
    await sse_app(lambda: source)(http_scope(), cycle.receive, cycle.send)


async def observed(source: AsyncIterator[Any], cycle: Cycle) -> None:
    app = sse_app(lambda: source, observer=TALLY)
    await app(http_scope(), cycle.receive, cycle.send)


async def by_a_response(source: AsyncIterator[Any], cycle: Cycle) -> None:
    from starlette.requests import Request
    from starlette.routing import request_response

    from sse_asgi.starlette import EventSourceResponse

    async def endpoint(request: Request) -> EventSourceResponse:
        return EventSourceResponse(source)

    app = request_response(endpoint)
    await app(http_scope(), cycle.receive, cycle.send)


def streaming(
    serve: Callable[[AsyncIterator[Any], Cycle], Awaitable[None]],
    source: Callable[[int], AsyncIterator[Any]],
) -> Action:
    """One stream of so many events."""
    return lambda count: asyncio.run(_serve(serve, source(count), Cycle()))


async def _serve(
    serve: Callable[[AsyncIterator[Any], Cycle], Awaitable[None]],
    source: AsyncIterator[Any],
    cycle: Cycle,
) -> None:
    await serve(source, cycle)


one_event = sse_app(lambda: waits(1))


async def open_ours(cycle: Cycle) -> None:
    await one_event(http_scope(), cycle.receive, cycle.send)


one_observed_event = sse_app(lambda: waits(1), observer=TALLY)


async def open_observed(cycle: Cycle) -> None:
    await one_observed_event(http_scope(), cycle.receive, cycle.send)


async def open_by_hand(cycle: Cycle) -> None:
    await by_hand(waits(1), cycle)


def with_a_clock_that_stands_still(act: Action) -> Action:
    """How many events are joined depends on the time that they take, and here that is long."""

    def acts(count: int) -> None:
        with patch.object(pump, "monotonic", lambda: 0.0):
            act(count)

    return acts


def opening(serve: Callable[[Cycle], Awaitable[None]]) -> Action:
    """So many streams of one event, one after another, while another one is open."""

    async def act(count: int) -> None:
        other = Cycle()
        stays = asyncio.ensure_future(_serve(ours, forever(), other))
        await other.has(b"data")
        for _ in range(count // TENTH):
            await serve(Cycle())
        other.disconnect()
        await stays

    return lambda count: asyncio.run(act(count))


async def forever() -> AsyncIterator[str]:
    yield data
    await asyncio.Event().wait()


SUBSCRIBERS = 20


def publishing(observer: Observer | None = None) -> Action:
    """So many events to the subscribers of a hub, one at a time."""

    async def act(count: int) -> None:
        async with Hub(observer=observer) as hub:
            app = sse_app(lambda: hub.subscribe("news"), observer=observer)

            async def listen(cycle: Cycle) -> None:
                await app(http_scope(), cycle.receive, cycle.send)

            await _publish(count, listen, lambda text: hub.publish("news", {"data": text}))

    return lambda count: asyncio.run(act(count))


def publishing_by_hand() -> Action:
    """The same with a queue for each client, and an id."""

    async def act(count: int) -> None:
        queues: list[asyncio.Queue[bytes]] = []

        async def listen(cycle: Cycle) -> None:
            queue: asyncio.Queue[bytes] = asyncio.Queue()
            queues.append(queue)
            await cycle.send({"type": "http.response.start", "status": 200, "headers": []})
            sending = asyncio.ensure_future(pass_on(queue, cycle))
            while (await cycle.receive())["type"] != "http.disconnect":
                pass
            sending.cancel()

        numbers = itertools.count(1)

        async def publish(text: str) -> None:
            frame = f"id: {next(numbers)}\ndata: {lines(text)}\n\n".encode()
            for queue in queues:
                queue.put_nowait(frame)

        await _publish(count, listen, publish)

    return lambda count: asyncio.run(act(count))


async def pass_on(queue: asyncio.Queue[bytes], cycle: Cycle) -> None:
    while True:
        frame = await queue.get()
        await cycle.send({"type": "http.response.body", "body": frame, "more_body": True})


async def _publish(
    count: int,
    listen: Callable[[Cycle], Coroutine[Any, Any, None]],
    publish: Callable[[str], Awaitable[object]],
) -> None:
    cycles = [Cycle() for _ in range(SUBSCRIBERS)]
    clients = [asyncio.ensure_future(listen(cycle)) for cycle in cycles]
    for _ in range(10):
        await asyncio.sleep(0)
    for number in range(count // TENTH):
        before = [len(cycle.sent) for cycle in cycles]
        await publish(f"event {number}")
        while any(len(cycle.sent) == sent for cycle, sent in zip(cycles, before, strict=True)):
            await asyncio.sleep(0)
    for cycle in cycles:
        assert len(cycle.sent) >= count // TENTH
        cycle.disconnect()
    await asyncio.wait(clients)


#: What is counted, and beside what.
MEASURED: dict[str, tuple[Action, Action]] = {
    **{f"encode {what}": (times(us), times(them)) for what, (us, them) in ENCODED.items()},
    "an event that was waited for": (streaming(ours, waits), streaming(by_hand, waits)),
    "the same by EventSourceResponse": (
        streaming(by_a_response, waits),
        streaming(by_hand, waits),
    ),
    "an event that was there": (
        with_a_clock_that_stands_still(streaming(ours, never_waits)),
        streaming(by_hand, never_waits),
    ),
    "a stream": (opening(open_ours), opening(open_by_hand)),
    f"an event to {SUBSCRIBERS} subscribers": (publishing(), publishing_by_hand()),
    # With an observer, beside the same without.
    "an observed event": (streaming(observed, waits), streaming(ours, waits)),
    "an observed stream": (opening(open_observed), opening(open_ours)),
    f"an observed event to {SUBSCRIBERS} subscribers": (publishing(TALLY), publishing()),
}

#: What is done a tenth as often.
RARE = {what for what in MEASURED if "subscribers" in what or what.endswith("stream")}


def count() -> dict[str, tuple[int, int]]:
    """Return the instructions for each, and of what it is beside.

    :raises FileNotFoundError: there is no valgrind.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise FileNotFoundError("valgrind")
    options = ["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    command = [valgrind, *options]
    run = subprocess.run(
        [*command, sys.executable, "-m", "tests.instructions"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    totals = {
        int(pid): int(total.replace(",", ""))
        for pid, total in re.findall(r"==(\d+)== I +refs: +([\d,]+)", run.stderr)
    }
    found: dict[str, tuple[int, int]] = {}
    for line in run.stdout.splitlines():
        what, *pids = line.split(";")
        few, many, few_by_hand, many_by_hand = (totals[int(pid)] for pid in pids)
        apart = (MANY - FEW) // (TENTH if what in RARE else 1)
        found[what] = (many - few) // apart, (many_by_hand - few_by_hand) // apart
    return found


def main() -> None:
    for actions in MEASURED.values():
        for act in actions:
            act(50)  # what is made at the first use
    for what, actions in MEASURED.items():
        pids = [forked(act, times) for act in actions for times in (FEW, MANY)]
        print(what, *pids, sep=";")


def forked(act: Action, count: int) -> int:
    """Do that in a process of its own. Return its number."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        act(count)
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


if __name__ == "__main__":
    main()
