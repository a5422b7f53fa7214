"""What other clients do else than the standard says, with what they do. Tests find the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from .cases import CASES, STATUS
from .model import Case, Observed, deviation, reader_deviation

#: A case, by its subject and its name.
Key = tuple[str, str]


def key_of(case: Case) -> Key:
    return case.subject, case.name


class Client(NamedTuple):
    """A client that the cases are run with."""

    name: str
    #: The version that was seen last. The tests do not ask for it.
    version: str
    #: What it does, and in which cases.
    differs: dict[str, list[Key]]
    is_reader: bool = False

    @property
    def reasons(self) -> dict[Key, str]:
        return {key: reason for reason, keys in self.differs.items() for key in keys}

    def can(self, case: Case) -> bool:
        """Whether the case is its job at all."""
        return case.one_response or not self.is_reader


def differences(client: Client, observations: Iterable[Observed]) -> dict[Key, str]:
    """What a client did differently from the standard, case by case."""
    found = {}
    for case, seen in zip(CASES, observations, strict=True):
        if client.can(case):
            first = (
                reader_deviation(case, seen)
                if client.is_reader
                else deviation(case.log, case.requests, seen)
            )
            if first is not None:
                found[key_of(case)] = first
    return found


def surprises(client: Client, found: dict[Key, str]) -> list[str]:
    """What is not as it is recorded."""
    recorded = client.reasons
    return [
        *(f"{key}: differs now: {found[key]}" for key in found.keys() - recorded.keys()),
        *(f"{key}: differs no more" for key in recorded.keys() - found.keys()),
    ]


def _cases(subject: str, which: Callable[[Case], bool]) -> list[Key]:
    return [key_of(case) for case in CASES if case.subject == subject and which(case)]


CHROMIUM = Client(
    "Chromium",
    "156",
    {
        "goes back to its own default of 3 seconds": [
            ("Reconnection time", "an empty value is ignored"),
            ("Reconnection time", "no value is ignored"),
        ],
        "refuses every charset except UTF-8": [
            ("Content type", "another charset does not count"),
            ("Content type", "an unknown charset"),
        ],
        "keeps the last event ID": [
            ("By the letter", "each response begins without a last event ID"),
        ],
    },
)

NODE = Client(
    "eventsource",
    "5.1.5",
    {
        "leaves out both BOMs": [("Encoding", "of two BOMs only one")],
        "leaves out a BOM decoded as ISO 8859-1": [
            ("Encoding", "a BOM decoded as ISO 8859-1 is none"),
        ],
        "takes several content types for one with an odd name": [
            ("Content type", "the last of two fields"),
            ("Content type", "the last in a list"),
        ],
        "keeps the last event ID": [
            ("By the letter", "each response begins without a last event ID"),
        ],
        "connects again at the URL that it was given": [
            ("By the letter", "after a redirect it connects again where that led"),
        ],
        "can't send the request, and tries for ever": [
            ("By the letter", "an id with a control character is sent"),
        ],
    },
)

READER = Client(
    "httpx2",
    "2.16.2",
    {
        "takes CR at the end of the stream for a blank line too": [("Lines", "the end after CR")],
        "keeps the BOM, so that the first field is unknown": [
            ("Encoding", "a BOM at the start is left out"),
            ("Encoding", "a BOM split over chunks"),
        ],
        "gives events without data": [
            ("Fields", "no data, no event"),
            ("Fields", "blocks without data"),
            ("Fields", "an event type does not outlive a block"),
            ("Ids", "an id without data counts"),
            ("Ids", "an id without data is of the next event"),
            ("Ids", "an empty id without data resets it"),
        ],
        "decodes in another encoding than UTF-8": [
            ("Content type", "another charset does not count"),
        ],
        "takes several content types for one with an odd name": [
            ("Content type", "the last of two fields"),
            ("Content type", "the last in a list"),
        ],
        "leaves the status to the caller": [
            *_cases(STATUS, lambda case: "fails" in case.name),
            ("Redirects", "to 404"),
            ("Redirects", "302 without a Location fails"),
        ],
        "sends `Cache-Control: no-store`": [("Requests", "Cache-Control: no-cache")],
    },
    is_reader=True,
)

OTHERS = (CHROMIUM, NODE, READER)
