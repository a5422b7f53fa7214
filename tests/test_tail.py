"""`python -m sse_asgi tail`: an event stream in a terminal, and in a script."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_asgi.decoder import DecodedEvent
from sse_asgi.tail.bench import Bench
from sse_asgi.tail.options import parse
from sse_asgi.tail.show import as_json, as_text, printable

from .http_peer import frames
from .test_client_sockets import GONE, HANG, HEAD, Serve, Server
from .test_demo import running

pytestmark = pytest.mark.anyio

WHEN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.fixture
def anyio_backend() -> str:
    """It is the program that runs elsewhere."""
    return "asyncio"


# As text.


@pytest.mark.parametrize(
    ("event", "pretty", "text"),
    [
        (DecodedEvent("message", "hello", "7"), False, "03:04:05.678 message 7 hello"),
        (DecodedEvent("tick", "1"), False, "03:04:05.678 tick 1"),
        (DecodedEvent("tick", '{"a":1}'), False, '03:04:05.678 tick {"a":1}'),
        (DecodedEvent("tick", '{\n"a":1}'), False, '03:04:05.678 tick {"a": 1}'),
        (
            DecodedEvent("tick", '{"a":[1,"ü"]}'),
            True,
            '03:04:05.678 tick \n    {\n      "a": [\n        1,\n        "ü"\n      ]\n    }',
        ),
        (DecodedEvent("tick", "{}"), True, "03:04:05.678 tick {}"),
        (DecodedEvent("tick", "1"), True, "03:04:05.678 tick 1"),
        (DecodedEvent("tick", "a\nb"), True, "03:04:05.678 tick a\n    b"),
        (DecodedEvent("tick", '"\\ud800"\n'), False, '03:04:05.678 tick "\\ud800"'),
    ],
)
def test_text(event: DecodedEvent, pretty: bool, text: str) -> None:
    assert as_text(event, WHEN, pretty=pretty, colours=False) == text


def test_colours() -> None:
    text = as_text(DecodedEvent("e", "d", "7"), WHEN, pretty=False, colours=True)
    assert text == "\x1b[2m03:04:05.678\x1b[0m \x1b[36me\x1b[0m \x1b[33m7\x1b[0m d"


@given(st.builds(DecodedEvent, st.text(), st.text(), st.text()), st.booleans())
def test_a_server_has_no_power_over_a_terminal(event: DecodedEvent, pretty: bool) -> None:
    text = as_text(event, WHEN, pretty=pretty, colours=False)
    assert not set(text) & {chr(n) for n in (*range(9), *range(11, 32), *range(127, 160))}


def test_printable() -> None:
    assert printable("a\tb\x1b[31m\x9b\u202e\r") == "a\tb\\x1b[31m\\x9b\\u202e\\r"
    assert printable("\u061c\u200b\u200f\ufeff") == "\\u061c\\u200b\\u200f\\ufeff"
    family = "\U0001f469\u200d\U0001f467 \u6f22 e\u0301"
    assert printable(family) == family


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("text", "text"),
        ('{"a": [1, null]}', {"a": [1, None]}),
        ("17", 17),
        ('"17"', "17"),
        ("NaN", "NaN"),
        ("[Infinity]", "[Infinity]"),
        ("", ""),
        ("[" * 100_000, "[" * 100_000),
        ('"\\ud800"', "\ud800"),
        ("\x1b[31m\x9b31m\u202e", "\x1b[31m\x9b31m\u202e"),
    ],
)
def test_json(data: str, value: Any) -> None:
    line = as_json(DecodedEvent("tick", data, "ü"), WHEN)
    line.encode()
    assert line.isprintable()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "time": "2026-01-02T03:04:05.678901+00:00", "event": "tick", "id": "ü", "data": value,
    }  # fmt: skip


# How fast.


def test_bench() -> None:
    bench = Bench("at", now=100.0)
    bench.receive(500)
    for data in ('{"at": 1800000000.0}', "1800000000500", "x", "1", '{"at": true}', "[]"):
        bench.count(DecodedEvent("message", data), unix_time=1800000001.0)
    bench.count(DecodedEvent("gap", '{"after": "1", "position": "9", "missed": 8}'), 1.0)
    assert bench.line(102.0) == (
        "3.5 events/s, 250 B/s, 1 gaps (8 missed), "
        "latency 1000.0/1000.0/1000.0 ms (median/99 %/most)"
    )
    assert bench.line(103.0) == "0.0 events/s, 0 B/s, 0 gaps"
    bench.receive(500)
    assert bench.summary(110.0).startswith("in 10.0 s: 7 events; 0.7 events/s, 100 B/s, 1 gaps")
    assert Bench("at", 1.0).line(1.0) == "0.0 events/s, 0 B/s, 0 gaps"


# The command line.


def test_options(tmp_path: Path) -> None:
    options = parse(["localhost:1/x"])
    assert (options.url, options.method, options.data) == ("http://localhost:1/x", "GET", None)
    options = parse(["https://x/", "-H", "A: b:c", "-d", '{"a": 1}'])
    assert (options.url, options.method, options.data) == ("https://x/", "POST", b'{"a": 1}')
    assert options.headers == [("A", "b:c"), ("content-type", "application/json")]
    (tmp_path / "body").write_bytes(b"a=1")
    options = parse(["x", "-X", "PUT", "-d", f"@{tmp_path / 'body'}"])
    assert (options.method, options.data) == ("PUT", b"a=1")
    assert options.headers == [("content-type", "application/x-www-form-urlencoded")]
    options = parse(["x", "-H", "Content-Type: text/plain", "-d", "1"])
    assert options.headers == [("Content-Type", "text/plain")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "URL"),
        (["x", "-H", "nothing"], "'nothing'"),
        (["x", "-H", "Last-Event-ID: 1"], "--from"),
        (["x", "-d", "@/no/such/file"], "No such file"),
        (["x", "-n", "0"], "1 or more"),
        (["x", "--timeout", "-1"], "seconds"),
        (["x", "--raw", "--json"], "--raw"),
        (["x", "--from", "a\nb"], "'a\\nb'"),
        (["x", "--from", "\udcff"], "--from"),  # bytes that are no UTF-8
        (["x", "-H", "a b: x"], "'a b'"),
        (["x", "-H", "a: \N{SNOWMAN}"], "Latin-1"),
        (["x", "-X", "GÜT"], "'GÜT'"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m sse_asgi tail: error: ")
    assert error.count("\n") == 1
    assert said in error


# The program.


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "sse_asgi", "tail", *arguments]


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root, "NO_PROXY": "*", "NO_COLOR": "", "TZ": "UTC"}


async def tail(*arguments: str) -> tuple[int, str, str]:
    """Run the program to its end; return its exit status and output."""
    with anyio.fail_after(HANG):
        process = await anyio.run_process(command(*arguments), check=False, env=environment())
    return process.returncode, process.stdout.decode(), process.stderr.decode()


def answer(response: bytes) -> Serve:
    async def serve(stream: anyio.abc.SocketStream, had: int) -> None:
        await stream.send(response)

    return serve


def stream(body: bytes) -> Serve:
    return answer(HEAD + b"connection: close\r\n\r\n" + body)


async def endless(stream: anyio.abc.SocketStream, had: int) -> None:
    await stream.send(HEAD + b"\r\n")
    for number in range(had + 1, 10**9):
        await stream.send(frames(number, number))
        await anyio.sleep(0.01)


async def test_a_stream_that_is_cut_and_ends() -> None:
    server = Server(
        stream(b"retry: 1\n\n" + frames(1, 2) + b"data: cut"),
        stream(b'event: other\nid: 3\ndata: {"a": 1}\n\n'),
        answer(GONE),
    )
    async with server.running() as url:
        status, out, err = await tail(url, "--from", "0")
    assert status == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["event"], line["id"], line["data"]) for line in lines] == [
        ("message", "1", 1), ("message", "2", 2), ("other", "3", {"a": 1}),
    ]  # fmt: skip
    assert server.had == [0, 2, 3]
    said = err.splitlines()
    assert said[0] == f"python -m sse_asgi tail: connected to {url}"
    assert said[1].startswith(
        "python -m sse_asgi tail: the response has ended; connecting again in 0."
    )
    assert len(said) == 4


async def test_what_is_shown() -> None:
    body = b"event: a\ndata: 1\n\nevent: b\ndata: {}\n\n: c\n\nevent: a\ndata: 2\n\n"
    async with Server(stream(body)).running() as url:
        status, out, err = await tail(url, "--once", "--event", "a", "--text", "-q")
        assert (status, [line.split(" ", 1)[1] for line in out.splitlines()], err) == (
            0, ["a 1", "a 2"], "",
        )  # fmt: skip
        status, out, err = await tail(url, "--once", "--raw")
        assert (status, out) == (0, body.decode())
        status, out, err = await tail(url, "-n", "2", "--text")
        assert (status, len(out.splitlines())) == (0, 2)


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (b"HTTP/1.1 403 No\r\ncontent-length: 9\r\n\r\nnot\x1byours", r"answers 403: not\x1byours"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 0\r\n\r\n", "text/html"),
        (HEAD + b"\r\n" + b"data: " + b"x" * 2**20, "larger than"),
        (b"nonsense\r\n\r\n", "error: illegal status line"),
        (HEAD + b"content-length: 9\r\n\r\n: x\n", "error: peer closed connection"),
        (b"HTTP/1.1 503 No\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n", "answers 503"),
    ],
)
async def test_what_can_not_be_followed(response: bytes, said: str) -> None:
    async with Server(answer(response)).running() as url:
        status, out, err = await tail(url, "--once")
    assert (status, out) == (1, "")
    assert said in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("python -m sse_asgi tail: error: ")


async def test_a_url_that_is_none() -> None:
    status, _, err = await tail("http://x:port/")
    assert (status, err.count("\n")) == (2, 1)
    status, _, err = await tail("ftp://x/")
    assert (status, err.count("\n")) == (1, 1), err


@pytest.mark.parametrize(
    ("redirected", "status", "said"),
    [
        (">/dev/full", 1, "error: [Errno 28] "),
        (">&-", 1, "error: the standard output is closed"),
        ("-d @- <&-", 2, "error: -d @-: the standard input is closed"),
        ("<&-", 0, "connected to "),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
    ],
)
async def test_what_can_not_be_written_or_read(redirected: str, status: int, said: str) -> None:
    async with Server(stream(frames(1, 1))).running() as url:
        process = await anyio.run_process(
            ["sh", "-c", f"{shlex.join(command(url, '-n', '1'))} {redirected}"],
            check=False, env=environment(),
        )  # fmt: skip
    assert process.returncode == status, process.stderr
    *_, last = ["", *process.stderr.decode().splitlines()]
    assert last.startswith(said and f"python -m sse_asgi tail: {said}")
    assert b"Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("url", "variable", "said"),
    [
        ("localhost:99999", "", "port"),
        ("https://localhost:1/", "SSL_CERT_FILE=/no/such/file", "No such file"),
        ("localhost:1", "ALL_PROXY=none://x", "proxy"),
    ],
)
async def test_what_no_attempt_helps(url: str, variable: str, said: str) -> None:
    name, _, value = variable.partition("=")
    env = {**environment(), "NO_PROXY": "", name or "X": value}
    process = await anyio.run_process(command(url), check=False, env=env)
    error = process.stderr.decode()
    assert (process.returncode, error.count("\n")) == (1, 1), error
    assert said in error


async def test_a_request(tmp_path: Path) -> None:
    heads: list[bytes] = []

    class Recording(Server):
        async def _serve(self, stream: anyio.abc.SocketStream) -> None:
            async with stream:
                request = b""
                while b"{}" not in request:
                    request += await stream.receive()
                heads.append(request)
                await stream.send(GONE)

    async with Recording().running() as url:
        assert (await tail(url, "-d", "{}", "-H", "X-Mine: 1"))[0] == 0
    assert heads[0].startswith(b"POST / HTTP/1.1\r\n")
    assert b"x-mine: 1\r\n" in heads[0].lower()


async def test_timeout() -> None:
    async with Server(endless).running() as url:
        status, out, err = await tail(url, "--timeout", "4", "--json")
    assert status == 3
    assert "connecting again" not in err  # it does not
    assert json.loads(out.splitlines()[0])["data"] == 1


async def test_bench_of_a_stream() -> None:
    async with Server(endless).running() as url:
        status, out, _ = await tail(url, "--bench", "-n", "150")
    assert status == 0
    *seconds, summary = out.splitlines()
    assert len(seconds) >= 1
    assert all("events/s" in line for line in seconds)
    assert "150 events;" in summary


async def test_interrupted_and_piped() -> None:
    async with Server(endless).running() as url:
        async with await anyio.open_process(
            command(url), env=environment(), stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            await process.stdout.receive()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
        # Whoever reads has had enough.
        program = shlex.join(command(url, "-q"))
        piped = await anyio.run_process(
            ["sh", "-c", f"{{ {program}; echo $? >&2; }} | head -n 1"], env=environment()
        )
    assert (piped.stdout.count(b"\n"), piped.stderr) == (1, b"0\n")


async def test_in_a_terminal() -> None:
    async with Server(stream(frames(1, 1)), answer(GONE)).running() as url:
        with terminal() as (main, end):
            process = await anyio.run_process(
                command(url, "-q", "--once"), stdout=end, stderr=end, env=environment()
            )
            assert process.returncode == 0
            shown = os.read(main, 1000).decode()
    assert shown.endswith(" \x1b[36mmessage\x1b[0m \x1b[33m1\x1b[0m 1\r\n")


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    main, end = pty.openpty()
    try:
        yield main, end
    finally:
        os.close(main)
        os.close(end)


def test_without_httpx2() -> None:
    script = (
        "import runpy, sys; sys.modules['httpx2'] = None; sys.argv[1:] = ['tail', 'x']; "
        "runpy.run_module('sse_asgi', run_name='__main__', alter_sys=True)"
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 2
    assert process.stderr == (
        "python -m sse_asgi tail: error: httpx2 is not installed: pip install httpx2\n"
    )


def test_the_demo_says_what_to_type() -> None:
    with running() as program:
        _, _, said = program.hint.strip().partition(": ")
        python, *arguments = said.split()
        assert python == "python"
        process = subprocess.run(
            [sys.executable, *arguments, "-n", "3", "--timeout", "30"],
            env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert {json.loads(line)["event"] for line in process.stdout.splitlines()} == {
        "machine", "sample",
    }  # fmt: skip
