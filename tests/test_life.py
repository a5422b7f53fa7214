"""The states of a stream and its ways out, and the documentation's tables of both."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sse_asgi import CloseReason
from sse_asgi.supervisor.life import WAYS_OUT, Life, State, WayOut

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "life-of-a-stream.md"

ERRORS = [ValueError("first"), KeyError("second")]

#: All that may happen in a life: a method, and what it is called with.
CALLS: list[tuple[str, Any]] = [
    ("tell", CloseReason.SHUTDOWN),
    ("tell", CloseReason.MAX_LIFETIME),
    *(("close", reason) for reason in CloseReason),
    *(("fail", error) for error in ERRORS),
    ("end", None),
]

#: A stream that was told to end, and then ends so, has done what it was told.
AS_TOLD = (CloseReason.FINISHED, CloseReason.CANCELLED)


def closes(call: tuple[str, Any]) -> CloseReason | None:
    """Return the reason that a call gives to a stream that is open, if it closes it."""
    method, argument = call
    reasons: dict[str, Any] = {
        "close": argument,
        "fail": CloseReason.ERROR,
        "end": CloseReason.CANCELLED,
    }
    return reasons.get(method)


class Logged(logging.Handler):
    """The exceptions that were logged."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert record.exc_info
        self.errors.append(record.exc_info[1])


@pytest.fixture
def logged() -> Iterator[Logged]:
    handler, logger = Logged(), logging.getLogger("sse_asgi")
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False  # pytest takes long for each
    yield handler
    logger.removeHandler(handler)
    logger.propagate = propagate


def lives(longest: int) -> Iterator[tuple[tuple[str, Any], ...]]:
    """Return every sequence of calls that is not longer."""
    for length in range(longest + 1):
        yield from itertools.product(CALLS, repeat=length)


def test_every_life_goes_one_way_and_ends_for_its_first_reason(logged: Logged) -> None:
    for calls in lives(4):
        life = Life()
        assert (life.state, life.reason, life.closing) == (State.OPEN, None, False)
        told: CloseReason | None = None
        closed: CloseReason | None = None
        errors: list[Any] = []
        logged.errors.clear()
        for number, (method, argument) in enumerate(calls):
            before = life.state
            result = getattr(life, method)(*([] if method == "end" else [argument]))

            # What it returns.
            if method == "tell":
                assert result is (number == 0), calls
                if result:
                    told = argument
            elif method == "close":
                assert result is (closed is None), calls
            elif method == "fail":
                assert result is None
                errors.append(argument)
            closed = closed or closes((method, argument))

            # The state.
            assert life.state >= before, calls
            if method == "end" or before is State.CLOSED:
                assert life.state is State.CLOSED, calls
            elif closed is not None:
                assert life.state is State.CLOSING, calls
            else:
                assert life.state is State.DRAINING, calls
            assert life.closing is (life.state >= State.CLOSING), calls

            # The reason.
            if told is not None and (closed is None or closed in AS_TOLD):
                assert life.reason is told, calls
            else:
                assert life.reason is closed, calls
            assert life.way_out is WAYS_OUT[life.reason or CloseReason.FINISHED]
            if method == "end":
                assert life.reason is not None
                assert result is WAYS_OUT[life.reason], calls

            # The exceptions.
            assert life.error is (errors[0] if errors else None), calls
            assert logged.errors == errors[1:], calls
            assert life.leaving is None


@pytest.mark.parametrize("told", [CloseReason.SHUTDOWN, CloseReason.MAX_LIFETIME])
@pytest.mark.parametrize("closed", CloseReason)
def test_a_stream_that_was_told_to_end(told: CloseReason, closed: CloseReason) -> None:
    life = Life()
    assert life.tell(told)
    assert life.close(closed)
    kept = closed in (CloseReason.FINISHED, CloseReason.CANCELLED)
    assert life.reason is (told if kept else closed)
    assert life.end() is WAYS_OUT[told if kept else closed]


def test_a_second_exception_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    life = Life()
    first, second = ERRORS
    life.fail(first)
    assert caplog.records == []
    life.fail(second)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info
    assert record.exc_info[1] is second
    assert life.error is first
    assert life.reason is CloseReason.ERROR


def test_an_exception_while_a_stream_is_closed_is_no_reason() -> None:
    life = Life()
    life.close(CloseReason.CLIENT_DISCONNECTED)
    life.fail(ERRORS[0])
    assert life.reason is CloseReason.CLIENT_DISCONNECTED
    assert life.error is ERRORS[0]


def test_every_reason_has_a_way_out() -> None:
    assert list(WAYS_OUT) == list(CloseReason)


def test_only_a_response_that_is_complete_has_something_before_its_end() -> None:
    for way_out in WAYS_OUT.values():
        assert way_out.complete or not (way_out.farewell or way_out.last_event)


# -- the documentation -----------------------------------------------------------------------------


def table(section: str) -> list[dict[str, str]]:
    """Return the rows of the table in a section of the page, by the heads of their columns."""
    _, _, text = PAGE.read_text().partition(f"\n## {section}\n")
    (found,) = re.findall(r"(?:^\|.*\|\n)+", text.partition("\n## ")[0], re.MULTILINE)
    head, line, *rows = (
        [cell.strip() for cell in row.strip("|").split("|")] for row in found.splitlines()
    )
    assert all(re.fullmatch("-+", cell) for cell in line)
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_documentation_has_every_way_out() -> None:
    complete = {"the end of the response": True, "broken off": False, "nothing": False}
    said_yes = {"yes": True, "no": False}
    documented = {
        row["{class}`~sse_asgi.CloseReason`"].strip("`"): WayOut(
            complete=complete[row["how the response ends"]],
            farewell=said_yes[row["new reconnection time"]],
            last_event=said_yes[row["last event"]],
        )
        for row in table("Ways out")
    }
    assert documented == {reason.value: way_out for reason, way_out in WAYS_OUT.items()}
    assert len(table("Ways out")) == len(WAYS_OUT)


def test_only_a_client_that_has_left_gets_nothing() -> None:
    nothing = [
        row["{class}`~sse_asgi.CloseReason`"]
        for row in table("Ways out")
        if row["how the response ends"] == "nothing"
    ]
    assert nothing == [f"`{CloseReason.CLIENT_DISCONNECTED.value}`"]


def test_the_documentation_has_every_state_in_its_order() -> None:
    assert [row["state"] for row in table("States")] == [state.name.lower() for state in State]
