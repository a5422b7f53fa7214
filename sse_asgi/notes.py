"""Notes on exceptions (PEP 678): which line of the application it was."""

from __future__ import annotations

from contextlib import suppress
from types import CodeType, FrameType, TracebackType
from typing import Any

__all__ = ["note_origin", "place_of"]


def place_of(source: Any) -> str:
    """Return the qualified name of a generator, with its file and first line; or of a class."""
    with suppress(Exception):  # of a proxy, say
        code, _ = _inner(source)
        if code is not None:
            return f"{code.co_qualname} ({code.co_filename}, line {code.co_firstlineno})"
    return type(source).__qualname__


def note_origin(error: BaseException, source: Any) -> None:
    """Add a note to ``error`` that names the generator it comes from, its file and its line.

    If the generator waits at a ``yield``, the error is about what it has yielded there. If its code
    is in the traceback, it has raised the error. Else there is no note. A note is added once.

    :param error: an exception that a stream ends with.
    :param source: the iterator that is the source: an async or sync generator, or another.
    """
    with suppress(Exception):  # of a proxy, or an odd class: a note is not worth an error
        note = _note(error, source)
        if note is not None and note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def _note(error: BaseException, source: Any) -> str | None:
    code, frame = _inner(source)
    if code is None:  # an iterator of another kind
        step = getattr(type(source), "__anext__", None) or getattr(type(source), "__next__", None)
        code = getattr(step, "__code__", None)
        if code is None:
            return None
        if (line := _line_in(error.__traceback__, code)) is None:
            return f"raised for what {type(source).__qualname__} gave"
        return _said("raised by", code, line)
    if (line := _line_in(error.__traceback__, code)) is not None:
        return _said("raised by", code, line)
    if frame is not None:
        return _said("raised for what", code, frame.f_lineno, " yielded")
    return None


def _said(what: str, code: CodeType, line: int, more: str = "") -> str:
    return f"{what} {code.co_qualname}{more} ({code.co_filename}, line {line})"


def _inner(source: Any) -> tuple[CodeType | None, FrameType | None]:
    """Return the code of a generator, and its frame if it waits: those of the innermost one."""
    while (inner := getattr(source, "gi_yieldfrom", None)) is not None:
        if not hasattr(inner, "gi_code"):
            break
        source = inner
    for kind in ("ag", "gi"):
        code = getattr(source, f"{kind}_code", None)
        if isinstance(code, CodeType):
            frame = getattr(source, f"{kind}_frame", None)
            return code, frame if isinstance(frame, FrameType) else None
    return None, None


def _line_in(traceback: TracebackType | None, code: CodeType) -> int | None:
    """Return the line at which ``code`` is in a traceback."""
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code is code:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
