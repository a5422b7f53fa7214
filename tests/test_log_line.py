"""The line in the log about each stream that has ended."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sse_asgi import HTTPError, Shutdown
from sse_asgi import sse_app as only_sse_app
from sse_asgi.testing import connect

from .entry_points import ENTRY_POINTS
from .streams import on_mock_clock

pytestmark = pytest.mark.anyio


@pytest.fixture(params=ENTRY_POINTS)
def sse_app(request: pytest.FixtureRequest) -> Any:
    return ENTRY_POINTS[request.param]


async def one() -> AsyncIterator[str]:
    yield "a"


async def waits() -> AsyncIterator[str]:
    yield "a"
    await anyio.sleep_forever()


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "has ended" in record.getMessage()]


async def test_a_normal_end_is_one_line_at_debug(
    sse_app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "sse_asgi")
    async with connect(sse_app(one), "/path?token=secret") as stream:
        await stream.read()
    (line,) = lines(caplog)
    assert line.levelno == logging.DEBUG
    fields = vars(line)
    assert fields["peer"] == "127.0.0.1:50000"
    assert (fields["method"], fields["path"]) == ("GET", "/path")
    assert (fields["reason"], fields["error"]) == ("finished", None)
    assert fields["events"] == 1
    assert fields["bytes"] >= 9  # it may be compressed
    assert 0 <= fields["seconds"] < 60
    assert "secret" not in line.getMessage()
    expected = "a stream has ended: finished, GET '/path' from 127.0.0.1:50000, 1 events in "
    assert line.getMessage().startswith(expected)


@pytest.mark.parametrize("end", ["disconnect", "shutdown", "finished"])
async def test_nothing_is_logged_of_normal_ends_unless_debug_is_on(
    sse_app: Any, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutdown = Shutdown()
    app = sse_app(one if end == "finished" else waits, shutdown=shutdown)
    async with connect(app) as stream:
        await stream.receive()
        if end == "shutdown":
            shutdown.drain()
            await stream.read()
    assert not caplog.records


async def test_an_exception_is_one_line_at_warning(
    sse_app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails() -> AsyncIterator[str]:
        yield "a"
        await anyio.lowlevel.checkpoint()
        raise OSError("secret")

    with pytest.raises(OSError, match="secret"):
        async with connect(sse_app(fails)) as stream:
            await stream.read()
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert line.exc_info is None  # the server logs that
    assert (vars(line)["reason"], vars(line)["error"]) == ("error", "OSError")
    assert "error (OSError)" in line.getMessage()
    assert "secret" not in line.getMessage()


async def test_an_exception_that_on_error_has_taken_is_in_the_log_too(
    sse_app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails() -> AsyncIterator[str]:
        yield "a"
        await anyio.lowlevel.checkpoint()
        raise OSError

    async with connect(sse_app(fails, on_error=lambda error: "sorry")) as stream:
        assert [event.data async for event in stream] == ["a", "sorry"]
    (line,) = caplog.records
    assert (line.levelno, vars(line)["events"]) == (logging.WARNING, 2)


@on_mock_clock
async def test_a_client_that_stops_reading() -> None:
    records: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    async def large() -> AsyncIterator[str]:
        while True:
            yield "x" * 100_000
            await anyio.lowlevel.checkpoint()

    logger, handler = logging.getLogger("sse_asgi"), Handler()
    logger.addHandler(handler)
    try:
        async with connect(only_sse_app(large, send_timeout=3)) as stream:
            stream.stall()
            await anyio.sleep(60)
    finally:
        logger.removeHandler(handler)
    (line,) = records
    assert line.levelno == logging.WARNING
    assert vars(line)["reason"] == "send_timeout"
    assert vars(line)["seconds"] >= 3


async def test_a_cancellation_from_around_the_application(
    sse_app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app, scope = sse_app(waits), anyio.CancelScope()

    async def in_scope(*exchange: Any) -> None:
        with scope:
            await app(*exchange)

    async with connect(in_scope) as stream:
        await stream.receive()
        scope.cancel()
        await stream.read()
    (line,) = caplog.records
    assert (line.levelno, vars(line)["reason"]) == (logging.WARNING, "cancelled")


async def test_a_refusal_is_no_end_of_a_stream(
    sse_app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuses() -> AsyncIterator[str]:
        raise HTTPError(403)
        yield ""

    for app in (sse_app(refuses), sse_app(one, methods=["POST"])):
        async with connect(app) as stream:
            assert stream.status_code in (403, 405)
    assert not caplog.records


async def test_an_address_or_a_method_can_not_forge_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A proxy may hand on what a client has put into a header field."""
    from sse_asgi.starlette import EventSourceResponse

    caplog.set_level(logging.DEBUG, "sse_asgi")
    forged = {"client": ("192.0.2.7\x1b[2J\n" + 500 * "x", 5), "method": "GET\nforged"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await EventSourceResponse(one())({**scope, **forged}, receive, send)

    async with connect(app) as stream:
        await stream.read()
    (line,) = lines(caplog)
    assert line.getMessage().isprintable()
    assert len(line.getMessage()) < 300
    assert vars(line)["peer"].startswith(r"192.0.2.7\x1b[2J\nx")
    assert vars(line)["method"] == r"GET\nforged"


@pytest.mark.parametrize("client", [None, ("::1", 5)])
async def test_a_path_can_not_forge_a_line(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "sse_asgi")
    app = only_sse_app(one)

    async def with_client(scope: Any, receive: Any, send: Any) -> None:
        await app(
            {**scope, "client": client, "path": "/\na stream has ended: forged"}, receive, send
        )

    async with connect(with_client) as stream:
        await stream.read()
    (line,) = lines(caplog)
    assert "\n" not in line.getMessage()
    assert vars(line)["peer"] == (None if client is None else "[::1]:5")
