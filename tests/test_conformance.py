"""The cases of tests/conformance, with this library's client and others. A browser has them too:
tests/browser/test_conformance.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from sse_asgi.client import backoff

from .conformance import drivers, page
from .conformance.cases import CASES
from .conformance.known import NODE, OTHERS, READER, differences, key_of, surprises
from .conformance.model import Case, Observed, Received, deviation
from .http_peer import LIBRARIES


@pytest.mark.anyio
@pytest.mark.parametrize("library", LIBRARIES)
async def test_this_client(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no hole; what it does on purpose is in the cases."""
    monkeypatch.setattr(backoff, "MOST", 0.0)  # no random part of a delay
    found = {}
    for case, seen in zip(CASES, await drivers.ours(CASES, library), strict=True):
        log, requests, _ = case.ours or (case.log, case.requests, "")
        if (first := deviation(log, requests, seen)) is not None:
            found[key_of(case)] = first
        if case.ours is not None:
            assert deviation(case.log, case.requests, seen) is not None, case.name
    assert found == {}


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_reader_of_httpx2() -> None:
    assert surprises(READER, differences(READER, await drivers.httpx2_reader(CASES))) == []


def test_eventsource_in_node() -> None:
    observations = drivers.node(CASES)
    assert surprises(NODE, differences(NODE, observations)) == []


def test_the_page_is_up_to_date() -> None:
    assert page.PATH.read_text(encoding="utf-8") == page.page(), "run python -m tests.conformance"


def test_what_is_recorded_is_of_cases() -> None:
    keys = [key_of(case) for case in CASES]
    assert len(set(keys)) == len(keys)
    for client in OTHERS:
        recorded = [key for some in client.differs.values() for key in some]
        assert len(set(recorded)) == len(recorded)
        assert set(recorded) <= {key_of(case) for case in CASES if client.can(case)}


def conforming(case: Case) -> Observed:
    requests = [
        Received(
            each.target,
            {name.lower(): value.encode() for name, value in each.fields.items()}
            | ({} if each.last_event_id is None else {"last-event-id": each.last_event_id}),
            each.after,
        )
        for each in case.requests
    ]
    return Observed(list(case.log), requests)


def test_what_is_else_is_seen() -> None:
    """A client that sees one thing less or more, or sends another request, does not conform."""
    for case in CASES:

        def conforms(seen: Observed, case: Case = case) -> bool:
            return deviation(case.log, case.requests, seen) is None

        assert conforms(conforming(case)), case.name
        for number in range(min(len(case.log), 5)):
            seen = conforming(case)
            del seen.log[number]
            assert not conforms(seen), case.name
            seen.log.insert(number, ("event", "else", "", ""))
            assert not conforms(seen), case.name
        for number, request in enumerate(case.requests):
            seen = conforming(case)
            had = seen.requests[number]
            changes = [
                replace(had, target="/else"),
                replace(had, fields={**had.fields, "last-event-id": b"else"}),
            ]
            if request.after:
                changes.append(replace(had, after=request.after / 2))
            if request.fields:
                changes.append(replace(had, fields={}))
            for change in changes:
                seen.requests[number] = change
                assert not conforms(seen), (case.name, change)
        seen = conforming(case)
        seen.requests.append(seen.requests[-1])
        assert not conforms(seen), case.name
