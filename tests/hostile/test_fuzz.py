"""Some rounds of the fuzz; `python -m tests.hostile.fuzz --hours 1` has more.

What a failure prints can be run again: `python -m tests.hostile.fuzz --case ...`.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.harness import KINDS, require_package

from .fuzz.cases import MODES, Case, make, walk
from .fuzz.driver import run
from .fuzz.oracle import faults
from .fuzz.servers import (
    SERVERS,
    TOGETHER,
    FuzzServer,
    batch,
    make_served,
    start_server,
    stop,
)
from .fuzz.stage import Stage

#: Cases in each mode of this process, and batches on each server.
ROUNDS = int(os.environ.get("SSE_ASGI_TEST_FUZZ", "200"))
BATCHES = max(1, ROUNDS // 500)

pytestmark = pytest.mark.timeout(120 + ROUNDS)


@pytest.fixture
def _quick_collection() -> Iterator[None]:
    """What is there before is not looked at again for each case."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def is_known(fault: str, stage: Stage) -> bool:
    """Return whether a fault is no stream's, or is not mended yet."""
    case = stage.case
    if "this should never happen" in fault:
        # trio, if a cancellation leaves a task group of the source's own, and a thread comes next.
        return case.mode == "trio" and any(step[0] == "thread" for step in walk(case.steps))
    if "that the source was resumed after are missing" in fault:
        # An event that is yielded while the source is closed is dropped, and that is said.
        said = [message for _, _, message in stage.outcome.records]
        return any("yielded while it was being closed" in message for message in said)
    if "garbage collected before it had been exhausted" in fault:
        return case.kind == "bare iterator"  # it has no aclose()
    # What a sync source raises after cleanup_timeout is logged.
    return "raised when nobody waited for it" in fault and case.kind == "sync"


@pytest.mark.usefixtures("_quick_collection")
@pytest.mark.parametrize("mode", MODES)
def test_in_process(mode: str) -> None:
    if mode == "eager" and sys.version_info < (3, 12):
        pytest.skip("eager tasks came with Python 3.12")
    wrong = []
    for seed in range(ROUNDS):
        case = make(seed, (mode,))
        stage, _ = run(case)
        found = [*faults(stage)]
        if found and not any(is_known(fault, stage) for fault in found):
            wrong.append("\n".join([*found, f"  --case '{case}'"]))
    assert not wrong, f"{len(wrong)} of {ROUNDS}:\n" + "\n".join(wrong[:5])


#: Also with tasks that run when they are made, where there are such.
_EAGER = ["uvicorn-h11 eager"] if sys.version_info >= (3, 12) else []


@pytest.fixture(scope="module", params=[*SERVERS, *_EAGER])
def fuzz_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FuzzServer]:
    name, _, eager = request.param.partition(" ")
    for package in KINDS[name].packages:
        require_package(package)
    server = start_server(name, tmp_path_factory.mktemp("fuzz"), eager=bool(eager))
    yield server
    server.kill()


@pytest.mark.parametrize("calm", [True, False], ids=["calm", "wild"])
def test_on_server(fuzz_server: FuzzServer, calm: bool) -> None:
    wrong = []
    for number in range(BATCHES):
        cases = [
            make_served(number * TOGETHER + n, fuzz_server.name, calm=calm) for n in range(TOGETHER)
        ]
        wrong += [f"{fault}\n  {case}" for case, fault in batch(fuzz_server, cases, calm=calm)]
    assert not wrong, "\n".join(wrong[:5])


@pytest.mark.parametrize("name", SERVERS)
def test_stop(name: str, tmp_path: Path) -> None:
    """It is told to stop while it has streams of all kinds; some clients are stuck, some leave."""
    for package in KINDS[name].packages:
        require_package(package)
    server = start_server(name, tmp_path)
    try:
        assert stop(server, 1) == []
    finally:
        server.kill()


@pytest.mark.usefixtures("_quick_collection")
def test_the_source_is_what_the_case_says() -> None:
    """A fuzz whose sources do nothing would find nothing."""
    events = closed = 0
    for seed in range(50):
        stage, outcome = run(make(seed, ("group",)))
        events += len(stage.log.frames)
        closed += len(stage.log.closed)
        assert outcome.returned is not None
    assert events > 100
    assert closed > 20


def _without_an_event(stage: Stage) -> None:
    del stage.outcome.messages[2]


def _with_an_event_twice(stage: Stage) -> None:
    stage.outcome.messages.insert(3, stage.outcome.messages[2])


def _with_a_ping_inside(stage: Stage) -> None:
    message = stage.outcome.messages[2]
    message.body = message.body[:9] + b":\n\n" + message.body[9:]


def _without_its_end(stage: Stage) -> None:
    stage.outcome.messages[-1].more = True


def _without_a_cleanup(stage: Stage) -> None:
    stage.log.cleaned.clear()


def _closed_twice(stage: Stage) -> None:
    stage.log.closed.append(True)


def _closed_elsewhere(stage: Stage) -> None:
    stage.log.closed[:] = [False]


def _without_a_ping(stage: Stage) -> None:
    pings = [m for m in stage.outcome.messages if m.body == b":\n\n"]
    stage.outcome.messages.remove(pings[1])


def _late(stage: Stage) -> None:
    assert stage.outcome.returned is not None
    stage.outcome.returned += 0.1


def _without_a_report(stage: Stage) -> None:
    stage.outcome.reports.clear()


def _with_a_task_left(stage: Stage) -> None:
    stage.outcome.left["tasks"] = 1


def _with_a_warning(stage: Stage) -> None:
    stage.outcome.records.append((0, "WARNING", "something"))


@pytest.mark.parametrize(
    "spoil",
    [
        _without_an_event,
        _with_an_event_twice,
        _with_a_ping_inside,
        _without_its_end,
        _without_a_cleanup,
        _closed_twice,
        _closed_elsewhere,
        _without_a_ping,
        _late,
        _without_a_report,
        _with_a_task_left,
        _with_a_warning,
    ],
)
def test_the_oracle_sees_it(spoil: Callable[[Stage], None]) -> None:
    """What is right is taken for right, and what is wrong for wrong."""
    case = Case(
        mode="group",
        steps=[["finally", [["burst", 3, 50], ["wait", 5]], [["wait", 0.02]]]],
        options={"ping": 0.5},
        on_close="sync",
        happens=[[2.1, "drain", 0]],
    )
    stage, _ = run(case)
    assert faults(stage) == []
    spoil(stage)
    assert faults(stage) != []
