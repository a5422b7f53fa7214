"""The page of the documentation: one table for each subject."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from .cases import CASES
from .known import OTHERS, Client, key_of
from .model import Case

PATH = Path(__file__).parents[2] / "docs/explanation/conformance.md"

HEAD = """\
<!-- `python -m tests.conformance` writes this page. -->
# Conformance: four clients against the standard

This page shows what clients of event streams make of the same {cases} cases. A case is a stream or
an HTTP response, byte by byte, with what
[WHATWG HTML 9.2](https://html.spec.whatwg.org/multipage/server-sent-events.html) tells a client to
do. Everything counts that can be seen: events with their types, data and ids, when the source opens
and fails, each request, its `Last-Event-ID`, and how long the client waited. The cases were written
anew. They cover the subjects of
[web-platform-tests](https://github.com/web-platform-tests/wpt/tree/master/eventsource) and more,
but not JavaScript, origins and cookies.

- **sse_asgi**: [`EventSource`](../how-to/client.md) of this library, through httpx2 and httpx, on
  asyncio and trio.
- **Chromium** {chromium}: the `EventSource` of a browser.
- **eventsource** {eventsource}: the package for Node.
- **httpx2** {httpx2}: `AsyncClient.sse`, which reads one response and never connects again. Cases
  that need another response are not for it. If it raises an error, it has failed the connection.

{totals}

- ✓: the client does what the standard says.
- n/a: the case is not for this client.
- A number: the client does something else. The note with this number, below the tables, says what.
- "on purpose": sse_asgi does something else, and the last section says why.

Tests run all cases with all clients, and fail if a result differs from this page:
`tests/test_conformance.py` and `tests/browser/test_conformance.py`.
"""


def page() -> str:
    notes: list[str] = []
    tables = [
        table(subject, list(cases), notes)
        for subject, cases in groupby(CASES, key=lambda case: case.subject)
    ]
    head = HEAD.format(
        cases=len(CASES), totals=totals(), **{each.name.lower(): each.version for each in OTHERS}
    )
    told = "\n".join(f"{number}. {note}." for number, note in enumerate(notes, 1))
    return "\n".join([head, *tables, f"## What the others do differently\n\n{told}\n", purposes()])


def totals() -> str:
    rows = [
        "| | sse_asgi | " + " | ".join(each.name for each in OTHERS) + " |",
        "|---|--:|--:|--:|--:|",
    ]
    on_purpose = sum(case.ours is not None for case in CASES)
    ours = f"{len(CASES) - on_purpose} of {len(CASES)}"
    others = (
        f"{sum(map(each.can, CASES)) - len(each.reasons)} of {sum(map(each.can, CASES))}"
        for each in OTHERS
    )
    rows.append(f"| as the standard says | {ours} | " + " | ".join(others) + " |")
    rows.append(f"| differs on purpose | {on_purpose} | | | |")
    return "\n".join(rows)


def table(subject: str, cases: list[Case], notes: list[str]) -> str:
    head = " | ".join(each.name for each in OTHERS)
    rows = [
        f"## {subject}\n",
        f"| case | section | sse_asgi | {head} |",
        "|---|---|:-:|:-:|:-:|:-:|",
    ]
    for case in cases:
        ours = "✓" if case.ours is None else "on purpose"
        cells = " | ".join(cell(case, client, notes) for client in OTHERS)
        rows.append(f"| {shown(case.name)} | {case.clause} | {ours} | {cells} |")
    return "\n".join([*rows, ""])


def cell(case: Case, client: Client, notes: list[str]) -> str:
    if not client.can(case):
        return "n/a"
    reason = client.reasons.get(key_of(case))
    if reason is None:
        return "✓"
    note = f"{client.name} {reason}"
    if note not in notes:
        notes.append(note)
    return str(notes.index(note) + 1)


def purposes() -> str:
    lines = ["## What sse_asgi does differently, on purpose\n"]
    lines += [
        f"- {shown(case.name)}: sse_asgi {case.ours[2]}." for case in CASES if case.ours is not None
    ]
    return "\n".join([*lines, ""])


def shown(name: str) -> str:
    return name.replace("|", "\\|").replace("*", "\\*")
