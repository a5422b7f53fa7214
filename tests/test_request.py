"""The view of the request, and what a client may send in it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_asgi import SSERequest

from .streams import http_scope


def request(**changes: Any) -> SSERequest:
    return SSERequest(http_scope(**changes))


def test_the_parts_of_a_request() -> None:
    view = request(
        path="/a b",
        path_params={"id": 7},
        query_string=b"a=1&b=%C3%A4&a=2&empty=",
        headers=[(b"X-One", b"1"), (b"x-one", b"2"), (b"cookie", b'a=1; b="x y"; bad; a=2')],
        client=("10.0.0.1", 5),
        state={"db": "there"},
    )
    assert view.method == "GET"
    assert view.path == "/a b"
    assert view.path_params == {"id": 7}
    assert view.scope["path"] == "/a b"
    assert view.headers["x-ONE"] == "2"
    assert view.headers.getlist("X-One") == ["1", "2"]
    assert "X-ONE" in view.headers
    assert 5 not in view.headers  # type: ignore[comparison-overlap]
    assert list(view.headers) == ["x-one", "cookie"]
    assert len(view.headers) == 2
    assert view.headers.get("missing") is None
    assert view.headers.getlist("missing") == []
    assert dict(view.query_params) == {"a": "2", "b": "ä", "empty": ""}
    assert view.query_params.getlist("a") == ["1", "2"]
    assert "A" not in view.query_params
    assert view.cookies == {"a": "1", "b": "x y"}
    assert view.client == ("10.0.0.1", 5)
    assert view.client is not None
    assert view.client.host == "10.0.0.1"
    assert view.state == {"db": "there"}
    assert not view.shutting_down


def test_what_a_scope_may_leave_out() -> None:
    view = SSERequest({"type": "http", "method": "GET", "path": "/", "headers": []})
    assert view.path_params == {}
    assert view.query_params == {}
    assert view.cookies == {}
    assert view.client is None
    assert view.state == {}
    assert view.last_event_id is None


@pytest.mark.parametrize(
    ("headers", "query", "expected"),
    [
        ([], b"", None),
        ([(b"last-event-id", b"5")], b"", "5"),
        ([(b"Last-Event-ID", b"5")], b"last_event_id=6", "5"),
        ([], b"last_event_id=6", "6"),
        ([(b"last-event-id", b"")], b"last_event_id=6", "6"),
        ([], b"last_event_id=", None),
        ([(b"last-event-id", "häß☃".encode())], b"", "häß☃"),  # a browser
        ([(b"last-event-id", "häß".encode("latin-1"))], b"", "häß"),  # npm's fetch
        ([(b"last-event-id", b"\xff\xfe")], b"", "ÿþ"),
        ([], b"last_event_id=h%C3%A4", "hä"),
        ([], b"last_event_id=%FF", "\ufffd"),
        ([(b"last-event-id", b"x" * 60_000)], b"", "x" * 60_000),
        ([(b"last-event-id", b"\xff" * 60_000)], b"", "\xff" * 60_000),
        ([], b"last_event_id=" + b"x" * 60_000, "x" * 60_000),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_last_event_id(headers: Any, query: bytes, expected: str | None) -> None:
    assert request(headers=headers, query_string=query).last_event_id == expected


@given(st.binary(max_size=5000), st.binary(max_size=5000), st.binary(max_size=200))
def test_nothing_that_a_client_sends_breaks_a_request(
    last_event_id: bytes, query: bytes, cookie: bytes
) -> None:
    headers = [(b"last-event-id", last_event_id), (b"cookie", cookie)]
    view = request(headers=headers, query_string=query)
    assert view.last_event_id is None or len(view.last_event_id) <= max(
        len(last_event_id), len(query)
    )
    assert set(view.cookies) <= set(view.headers["cookie"].replace("=", ";").split(";")) | {
        name.strip() for name in view.headers["cookie"].replace("=", ";").split(";")
    }
    assert all(isinstance(value, str) for value in view.query_params.values())
