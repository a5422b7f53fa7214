"""What a case is made of, and what it means that a client does what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile, zip_longest
from typing import Any, Literal, TypeAlias

#: What a client has seen: `("open",)`, `("error", state)`, `("late",)` if it was still not closed
#: when patience ended, or an event: `("event", type, data, last event ID)`.
Entry: TypeAlias = tuple[str, ...]

OPEN: Entry = ("open",)
LOST: Entry = ("error", "connecting")
CLOSED: Entry = ("error", "closed")
LATE: Entry = ("late",)

STREAM = "text/event-stream"


def event(data: str, id: str = "", type: str = "message") -> Entry:
    return ("event", type, data, id)


@dataclass(frozen=True)
class Answer:
    """What the server does with one request.

    Numbers among the chunks are pauses, in seconds.
    """

    chunks: tuple[bytes | float, ...] = ()
    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("Content-Type", STREAM),)
    #: How the body ends: with the connection, with the last chunk of a chunked body, with such a
    #: body cut off, with a reset; `hold`: it stays open until the client leaves; `silent`: there is
    #: no response at all.
    end: Literal["close", "chunked", "cut", "reset", "hold", "silent"] = "close"


def stream(*chunks: bytes | float, **options: Any) -> Answer:
    return Answer(chunks, **options)


GONE = Answer(status=204, headers=())


@dataclass(frozen=True)
class Request:
    """What a request must be like."""

    #: The value of Last-Event-ID; `None`: there must be none.
    last_event_id: bytes | None = None
    #: What follows the path of the case.
    target: str = ""
    #: In seconds, how long after the end of the response before it comes at least.
    after: float = 0.0
    #: Header fields that it must have.
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One rule of the standard: what a server does, and what a client does then."""

    subject: str
    name: str
    #: The section of WHATWG HTML.
    clause: str
    #: One for each request. The last one is given again and again.
    answers: tuple[Answer, ...]
    #: What the client sees.
    log: tuple[Entry, ...]
    #: What it sends.
    requests: tuple[Request, ...]
    #: The client closes when it has seen so many.
    close_after: int | None = None
    #: What follows the path of the case in the URL.
    suffix: str = ""
    #: Whether one response is enough, so that it is the job of a reader that never reconnects.
    one_response: bool = True
    #: What this library's client does instead, on purpose, and why.
    ours: tuple[tuple[Entry, ...], tuple[Request, ...], str] | None = None

    @property
    def types(self) -> list[str]:
        """The types of events to listen for."""
        return sorted({"message", *(entry[1] for entry in self.log if entry[0] == "event")})


@dataclass(frozen=True)
class Received:
    """A request that the server has got."""

    target: str
    fields: Mapping[str, bytes]
    #: In seconds, how long after the end of the response before.
    after: float


@dataclass
class Observed:
    """What a client did with a case."""

    log: list[Entry]
    requests: list[Received]


def deviation(log: Sequence[Entry], requests: Sequence[Request], observed: Observed) -> str | None:
    """Return what a client did else first; `None`: it did as expected."""
    for number, (want, got) in enumerate(zip_longest(log, observed.log)):
        if want != got:
            return f"{number}: {_short(got)} instead of {_short(want)}"
    for number, (asked, had) in enumerate(zip_longest(requests, observed.requests)):
        if asked is None or had is None:
            return f"{len(observed.requests)} requests instead of {len(requests)}"
        if wrong := _request_deviation(asked, had):
            return f"request {number}: {wrong}"
    return None


def reader_deviation(case: Case, observed: Observed) -> str | None:
    """Return what a reader of one response did else: events, or that it refuses to read."""
    ends = [n for n, entry in enumerate(case.log) if entry[0] == "error"]
    log = list(case.log[: ends[0]] if ends else case.log) or [CLOSED]
    redirects = takewhile(lambda answer: "Location" in dict(answer.headers), case.answers)
    requests = case.requests[: 1 + len(list(redirects))]
    return deviation(log, requests, Observed(observed.log, observed.requests[: len(requests)]))


def _request_deviation(asked: Request, had: Received) -> str | None:
    if asked.target != had.target:
        return f"to {had.target!r} instead of {asked.target!r}"
    if (id := had.fields.get("last-event-id")) != asked.last_event_id:
        return f"Last-Event-ID {id!r} instead of {asked.last_event_id!r}"
    for name, value in asked.fields.items():
        if (got := had.fields.get(name.lower())) != value.encode():
            return f"{name} {got!r} instead of {value!r}"
    # A timer of JavaScript may be a millisecond early.
    if had.after < asked.after - 0.01:
        return f"after {had.after:.3f} s instead of {asked.after} s"
    return None


def _short(entry: Entry | None) -> str:
    return "nothing" if entry is None else f"{entry!r:.200}"
