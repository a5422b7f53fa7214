"""A note on an exception says which line of the application it was about."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from sse_asgi.encoder import encode
from sse_asgi.notes import note_origin

pytestmark = pytest.mark.anyio


def line_of(function: Any, text: str) -> int:
    """The number of the line of a function that has a text in it."""
    lines, first = inspect.getsourcelines(function)
    (found,) = (number for number, line in enumerate(lines, first) if text in line)
    return found


def notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


async def bad() -> AsyncIterator[Any]:
    yield "fine"
    yield {"dta": 1}  # here


async def failing() -> AsyncIterator[Any]:
    yield "fine"
    raise ZeroDivisionError  # here


def sync_bad() -> Iterator[Any]:
    yield "fine"
    yield {"dta": 1}  # here


def sync_failing() -> Iterator[Any]:
    yield "fine"
    raise ZeroDivisionError  # here


def delegating() -> Iterator[Any]:
    yield from sync_bad()


@pytest.fixture
async def closing() -> AsyncIterator[list[Any]]:
    """Sources to be closed after the test."""
    sources: list[Any] = []
    yield sources
    for source in sources:
        await source.aclose() if hasattr(source, "aclose") else source.close()


async def error_of(source: Any) -> Exception:
    """What comes of reading and encoding all that a source yields."""
    try:
        while True:
            encode(await anext(source) if hasattr(source, "__anext__") else next(source))
    except Exception as exc:
        return exc


@pytest.mark.parametrize(
    ("function", "what", "where"),
    [
        (bad, "raised for what bad yielded", bad),
        (sync_bad, "raised for what sync_bad yielded", sync_bad),
        (delegating, "raised for what sync_bad yielded", sync_bad),
        (failing, "raised by failing", failing),
        (sync_failing, "raised by sync_failing", sync_failing),
    ],
)
async def test_the_note_names_the_line(
    function: Callable[[], Any], what: str, where: Any, closing: list[Any]
) -> None:
    source = function()
    error = await error_of(source)
    closing.append(source)
    for _ in range(2):  # once is enough
        note_origin(error, source)
        assert notes(error) == [f"{what} ({__file__}, line {line_of(where, '# here')})"]


async def test_the_name_is_qualified(closing: list[Any]) -> None:
    class Feed:
        async def events(self) -> AsyncIterator[Any]:
            yield 5

    source = Feed().events()
    error = await error_of(source)
    closing.append(source)
    note_origin(error, source)
    (note,) = notes(error)
    assert note.startswith(
        "raised for what test_the_name_is_qualified.<locals>.Feed.events yielded ("
    )


class Iterates:
    def __init__(self, *events: Any) -> None:
        self.events = list(events)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return self.events.pop(0)  # here


async def test_an_iterator_of_another_kind() -> None:
    for events, what in (
        ([5], "raised for what Iterates gave"),
        ([], f"raised by Iterates.__anext__ ({__file__}, line {line_of(Iterates, '# here')})"),
    ):
        source = Iterates(*events)
        error = await error_of(source)
        note_origin(error, source)
        assert notes(error) == [what]


async def test_what_can_not_be_said_is_left_out() -> None:
    class Hostile(Exception):
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError

    for source in (iter([5]), None, 5, object()):
        error = ValueError()
        note_origin(error, source)
        assert not notes(error)
    source = bad()
    assert await anext(source) == "fine"
    note_origin(Hostile(), source)
    await source.aclose()  # type: ignore[attr-defined]
    error = ValueError()
    note_origin(error, source)  # it has ended, and is not in the traceback
    assert not notes(error)
