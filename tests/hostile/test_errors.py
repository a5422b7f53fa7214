"""Sources that fail in unusual ways, and data that clients stumble over."""

from __future__ import annotations

import json
import time

from tests.servers.clients import wait_for
from tests.servers.conftest import StartServer
from tests.servers.test_disconnect import leaves

from .apps import STUMBLES
from .harness import (
    EAGER,
    HTTP2,
    SERVERS,
    Attacked,
    every_bare_form,
    every_form,
    forget_traceback,
    on,
)
from .test_leaving import Leave

ALL = [*SERVERS, *HTTP2, *EAGER]


def panics(server: Attacked, path: str) -> None:
    with server.open(path) as response:
        ending = response.read_to_end()
        assert ending == ("broken" if server.kind.shows_errors else "complete")
        # All that came before is there.
        assert bytes(response.body).replace(b"\r\n", b"\n") == b"data: before\n\ndata: the end\n\n"


# Not behind Starlette's BaseHTTPMiddleware: it knows of an `Exception` alone, and ends the response
# as usual after any other.
@every_bare_form
@on(*(name for name in ALL if name != "hypercorn-trio"))
def test_a_base_exception_is_no_clean_end(server: Attacked, tag: str, form: str) -> None:
    """Regression 36: a panic of a library written in Rust (found by attack). The server goes on."""
    panics(server, f"{form}/panic?tag={tag}")
    history = server.wait_for_end(tag)
    assert "closed error" in history
    assert history.index("source cleaned up on the loop") < history.index("closed error")
    with server.open("/events") as response:
        assert response.read_to_end() == "complete"
    server.wait_for_complaint("PanicException: meant")  # the end of a traceback
    forget_traceback(server)


@every_bare_form
def test_a_base_exception_on_trio(start_server: StartServer, form: str) -> None:
    """Regression 36, for itself (found by attack): whatever the application is, hypercorn on trio
    exits when such an exception leaves it.
    """
    server = start_server("hypercorn-trio")
    assert isinstance(server, Attacked)
    panics(server, f"{form}/panic")
    wait_for(lambda: "PanicException: meant" in server.log(), server.log)


@every_form
@on(*ALL)
def test_a_status_at_once(server: Attacked, tag: str, form: str) -> None:
    """Regression 27: it does not depend on when tasks first run (anyio#764, #853)."""
    with server.open(f"{form}/forbidden-at-once?tag={tag}") as response:
        assert response.status == 403
        assert response.read_to_end() == "complete"


@every_form
@on(*ALL)
def test_a_framework_s_status_stays_a_status(server: Attacked, tag: str, form: str) -> None:
    """HTTPException(404) before the start, though `on_error` would make an event of it."""
    with server.open(f"{form}/not-found?tag={tag}") as response:
        assert response.status == 404
        assert response.read_to_end() == "complete"
        assert b"sorry" not in response.body


@every_form
@on("uvicorn-h11", "hypercorn-trio", "granian")
def test_json_that_clients_stumble_over(server: Attacked, tag: str, form: str) -> None:
    """Regression 30: lone surrogates, U+2028, U+2029 and U+0085 arrive escaped
    (hermes-agent#84281, python-sdk#1356, dify#39008).
    """
    with server.open(f"{form}/stumbling?tag={tag}") as response:
        assert response.read_to_end() == "complete"
        lines = response.body.decode().replace("\r\n", "\n").split("\n")
    assert lines[1:] == ["", "data: after", "", ""]
    assert json.loads(lines[0].removeprefix("data: ")) == STUMBLES
    assert not {"\u2028", "\u2029", "\u0085"} & {*lines[0]}
    # What httpx and requests read lines with.
    assert "".join(lines).splitlines() == ["".join(lines)]


@leaves
@every_form
@on("uvicorn-h11", "uvicorn-httptools", "hypercorn", "hypercorn-trio", "granian")
def test_clients_leave_a_source_that_is_about_to_fail(
    server: Attacked, tag: str, form: str, leave: Leave
) -> None:
    """Whichever comes first, the source is cleaned up once, and the report is made once."""
    forget_traceback(server)
    for _ in range(5):
        response = server.open(f"{form}/about-to-fail?tag={tag}")
        response.read_until(lambda body: b"before" in body)
        leave(response)
    history = server.wait_for_end(tag, 5)
    assert history.count("source cleaned up on the loop") == 5
    assert sum(what.startswith("closed ") for what in history) == 5
    time.sleep(0.1)  # for what is still to be logged
