"""The demo, `python -m sse_asgi`: the log file it tails, the machine it measures, the program."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx
import psutil
import pytest
from asgi_lifespan import LifespanManager
from hypothesis import given, settings
from hypothesis import strategies as st

import sse_asgi
from sse_asgi import ServerSentEvent, Tally
from sse_asgi.decoder import DecodedEvent, EventStreamDecoder
from sse_asgi.demo.app import Lasting, create_app
from sse_asgi.demo.log_file import LogReader, follow
from sse_asgi.demo.machine import Sample, samples
from sse_asgi.testing import Connection, connect
from sse_asgi.types import ASGIApp, Message, Scope

pytestmark = pytest.mark.anyio

#: Seconds after which something hangs. No test expects anything to take a certain time.
HANG = 60

Tail = AsyncGenerator[ServerSentEvent, None]


# The log file.


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "app.log"
    path.touch()
    return path


@asynccontextmanager
async def tailing(path: Path, last_event_id: str | None = None) -> AsyncGenerator[Tail, None]:
    async with aclosing(follow(str(path), last_event_id, interval=0.001)) as stream:
        yield stream


async def take(stream: Tail, count: int) -> list[ServerSentEvent]:
    with anyio.fail_after(HANG):
        return [await anext(stream) for _ in range(count)]


async def take_lines(stream: Tail, count: int) -> list[str | None]:
    return [event.data for event in await take(stream, count)]


@contextmanager
def reading(path: Path, last_event_id: str | None = None) -> Iterator[LogReader]:
    """What `follow` is made of, without waiting: every step is the test's."""
    reader = LogReader(str(path), last_event_id)
    try:
        yield reader
    finally:
        reader.close()


def read_all(reader: LogReader) -> list[ServerSentEvent]:
    events: list[ServerSentEvent] = []
    while more := reader.read():
        events += more
    return events


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def rotate(path: Path, data: bytes = b"") -> Path:
    """Rename the file, as logrotate does, and put a new one in its place."""
    old = path.with_suffix(".1")
    path.rename(old)
    path.write_bytes(data)
    return old


def line(data: str, position: int) -> ServerSentEvent:
    return ServerSentEvent(data, id=position)


def restart(reason: str) -> ServerSentEvent:
    return ServerSentEvent(reason, event="restart", id=0)


async def test_id_is_the_offset_after_the_line(log: Path) -> None:
    append(log, b"one\n\n\xc3\xa9t\xc3\xa9\r\n")
    async with tailing(log, "0") as stream:
        assert await take(stream, 3) == [line("one", 4), line("", 5), line("été", 12)]
        append(log, b"four\n")
        assert await take(stream, 1) == [line("four", 17)]


@pytest.mark.parametrize("lines", [0, 1, 9, 10, 11, 5000])
async def test_new_client_gets_the_last_ten_lines(log: Path, lines: int) -> None:
    append(log, b"".join(b"line %d of some length\n" % n for n in range(lines)))
    append(log, b"unfini")
    last = [f"line {n} of some length" for n in range(max(0, lines - 10), lines)]
    async with tailing(log) as stream:
        (position,) = await take(stream, 1)
        assert await take_lines(stream, len(last)) == last
        append(log, b"shed\n")
        assert await take_lines(stream, 1) == ["unfinished"]
    # It was told where it starts, in an event that no browser dispatches.
    assert position.data is None
    async with tailing(log, position.id) as stream:
        assert await take_lines(stream, len(last) + 1) == [*last, "unfinished"]


@pytest.mark.parametrize("last_event_id", [None, ""])
async def test_client_that_has_seen_no_line_yet_misses_none(
    log: Path, last_event_id: str | None
) -> None:
    async with tailing(log, last_event_id) as stream:
        (position,) = await take(stream, 1)
    append(log, b"".join(b"%d\n" % n for n in range(50)))
    async with tailing(log, position.id) as stream:
        assert await take_lines(stream, 50) == [str(n) for n in range(50)]


async def test_line_waits_for_its_newline(log: Path) -> None:
    append(log, b"on")
    async with tailing(log, "0") as stream:

        async def finish() -> None:
            await anyio.sleep(0.05)  # many polls, or none: the line is one event
            append(log, b"e\ntwo")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(finish)
            assert await take(stream, 1) == [line("one", 4)]
        append(log, b"\n")
        assert await take(stream, 1) == [line("two", 8)]


def test_line_written_in_many_parts_is_one_event(log: Path) -> None:
    with reading(log, "0") as reader:
        for part in (b"\xc3", b"\xa9", b"t", b"\xc3", b"\xa9", b"\r"):
            append(log, part)
            assert reader.read() == []
        append(log, b"\n")
        assert reader.read() == [line("été", 7)]
        assert reader.read() == []


@pytest.mark.parametrize(
    ("last_event_id", "expected"),
    [("0", ["one", "two", "three"]), ("4", ["two", "three"]), ("8", ["three"]), ("14", [])],
)
async def test_resumes_after_the_id(log: Path, last_event_id: str, expected: list[str]) -> None:
    append(log, b"one\ntwo\nthree\n")
    async with tailing(log, last_event_id) as stream:
        append(log, b"four\n")
        assert await take_lines(stream, len(expected) + 1) == [*expected, "four"]


@pytest.mark.parametrize(
    "last_event_id",
    [
        pytest.param("9", id="beyond the end"),
        pytest.param("9" * 18, id="far beyond the end"),
        pytest.param("9" * 5000, id="beyond any integer"),
        pytest.param("5", id="within a line"),
        pytest.param("-4", id="negative"),
        pytest.param("+4", id="sign"),
        pytest.param("1_0", id="underscore"),
        pytest.param(" 4", id="space"),
        pytest.param("4.0", id="fraction"),
        pytest.param("\N{ARABIC-INDIC DIGIT FOUR}", id="digit of another script"),
        pytest.param("\N{SUPERSCRIPT FOUR}", id="superscript"),
        pytest.param("four", id="no number"),
        pytest.param("\0", id="NUL"),
    ],
)
async def test_id_that_is_no_position_is_said_and_starts_at_0(
    log: Path, last_event_id: str
) -> None:
    append(log, b"one\ntwo\n")
    async with tailing(log, last_event_id) as stream:
        events = await take(stream, 3)
    assert events == [restart("unknown position"), line("one", 4), line("two", 8)]


async def test_rotation_reads_the_old_file_to_its_end_first(log: Path) -> None:
    append(log, b"one\n")
    async with tailing(log) as stream:
        assert await take_lines(stream, 2) == [None, "one"]
        append(log, b"two\n")
        old = rotate(log)
        append(old, b"three\n")  # whoever writes has not noticed yet
        assert await take(stream, 2) == [line("two", 8), line("three", 14)]
        append(old, b"four\n")
        assert await take(stream, 1) == [line("four", 19)]
        append(old, b"five\n")
        append(log, b"six\n")
        assert await take(stream, 3) == [
            line("five", 24),
            restart("file rotated"),
            line("six", 4),
        ]
        append(log, b"seven\n")
        assert await take(stream, 1) == [line("seven", 10)]


async def test_rotation_while_a_large_file_is_being_read(log: Path) -> None:
    old = [f"old line number {n}" for n in range(50_000)]
    append(log, "".join(f"{text}\n" for text in old).encode())
    async with tailing(log, "0") as stream:
        first = await take_lines(stream, 1)
        rotate(log, b"new\n")
        assert first + await take_lines(stream, len(old) - 1) == old
        assert await take(stream, 2) == [restart("file rotated"), line("new", 4)]


def test_unfinished_line_of_a_rotated_file_is_shown(log: Path) -> None:
    append(log, b"one\nunfinished")
    with reading(log, "0") as reader:
        assert read_all(reader) == [line("one", 4)]
        rotate(log, b"new\n")
        assert read_all(reader) == [
            line("unfinished", 4),  # reading would continue at its beginning
            restart("file rotated"),
            line("new", 4),
        ]


def test_empty_new_file_does_not_end_the_old_one(log: Path) -> None:
    """Logrotate's "create" makes the new file before it tells the program that writes."""
    append(log, b"one\n")
    with reading(log, "0") as reader:
        assert read_all(reader) == [line("one", 4)]
        old = rotate(log)
        assert read_all(reader) == []
        append(old, b"two\n")
        assert read_all(reader) == [line("two", 8)]
        append(old, b"three\n")
        append(log, b"new\n")
        assert read_all(reader) == [line("three", 14), restart("file rotated"), line("new", 4)]


def test_path_without_a_file_during_a_rotation(log: Path) -> None:
    append(log, b"one\n")
    with reading(log, "0") as reader:
        assert read_all(reader) == [line("one", 4)]
        old = log.rename(log.with_suffix(".1"))
        append(old, b"two\n")
        assert read_all(reader) == [line("two", 8)]
        log.mkdir()  # nothing that can be read
        assert read_all(reader) == []
        append(old, b"three\n")
        assert read_all(reader) == [line("three", 14)]
        log.rmdir()
        append(log, b"new\n")
        assert read_all(reader) == [restart("file rotated"), line("new", 4)]


async def test_after_a_rotation_the_position_is_one_in_the_new_file(log: Path) -> None:
    append(log, b"before\n")
    async with tailing(log) as stream:
        await take(stream, 2)
        rotate(log, b"0 has got\nas long a line\n")
        (event,) = await take(stream, 1)
    assert event == restart("file rotated")
    async with tailing(log, event.id) as stream:
        assert await take_lines(stream, 2) == ["0 has got", "as long a line"]


async def test_rotation_while_away(log: Path) -> None:
    append(log, b"a line of the old file\n")
    async with tailing(log) as stream:
        _, event = await take(stream, 2)
    rotate(log, b"new\n")
    async with tailing(log, event.id) as stream:
        assert await take(stream, 2) == [restart("unknown position"), line("new", 4)]


async def test_truncation(log: Path) -> None:
    append(log, b"one\ntwo\n")
    async with tailing(log, "4") as stream:
        assert await take(stream, 1) == [line("two", 8)]
        log.write_bytes(b"")
        assert await take(stream, 1) == [restart("file truncated")]
        append(log, b"three\n")
        assert await take(stream, 1) == [line("three", 6)]


def test_truncated_file_that_has_grown_past_the_position_again(log: Path) -> None:
    append(log, b"1 January, one\n1 January, two\n")
    with reading(log, "0") as reader:
        assert read_all(reader) == [line("1 January, one", 15), line("1 January, two", 30)]
        log.write_bytes(b"2 January, three\n2 January, four\n")
        assert read_all(reader) == [
            restart("file truncated"),
            line("2 January, three", 17),
            line("2 January, four", 33),
        ]


def test_truncation_just_after_a_client_has_come_back(log: Path) -> None:
    append(log, b"one\n")
    with reading(log, "4") as reader:
        assert reader.read() == []
        log.write_bytes(b"1st\n2nd\n")
        assert read_all(reader) == [restart("file truncated"), line("1st", 4), line("2nd", 8)]


async def test_truncation_while_away(log: Path) -> None:
    append(log, b"new\n")
    async with tailing(log, "10") as stream:
        assert await take(stream, 2) == [restart("unknown position"), line("new", 4)]


async def test_file_missing_when_a_new_client_comes(log: Path) -> None:
    log.unlink()
    async with tailing(log) as stream:
        assert await take(stream, 1) == [ServerSentEvent(id=0)]
        append(log, b"".join(b"%d\n" % n for n in range(50)))
        with anyio.fail_after(HANG):
            lines = [(await anext(stream)).data for _ in range(50)]
    assert lines == [str(n) for n in range(50)]


def test_file_missing_when_a_client_comes_back(log: Path) -> None:
    log.unlink()
    with reading(log, "22") as reader:
        assert reader.read() == []
        assert reader.read() == []
        append(log, b"new\n")
        assert read_all(reader) == [restart("unknown position"), line("new", 4)]


async def test_invalid_utf8_is_replaced(log: Path) -> None:
    append(log, b"caf\xe9\n\xff\xfe\n\xed\xa0\x80\n\x00\n")
    async with tailing(log, "0") as stream:
        assert await take(stream, 4) == [
            line("caf\N{REPLACEMENT CHARACTER}", 5),
            line("\N{REPLACEMENT CHARACTER}" * 2, 8),
            line("\N{REPLACEMENT CHARACTER}" * 3, 12),
            line("\0", 14),
        ]


async def test_long_line_comes_in_pieces_without_breaking_positions(log: Path) -> None:
    text = "x" + "é" * 200_000
    end = len(f"before\n{text}\n".encode())
    append(log, f"before\n{text}\nafter\n".encode())
    async with tailing(log, "7") as stream:
        pieces = await take(stream, 7)
        assert await take(stream, 1) == [line("after", end + 6)]
    assert "".join(piece.data or "" for piece in pieces) == text
    assert max(len((piece.data or "").encode()) for piece in pieces) <= 64 * 1024
    # Whoever leaves within the line gets it again from its beginning.
    assert [piece.id for piece in pieces] == ["7"] * 6 + [str(end)]


def test_endless_line_is_not_kept(log: Path) -> None:
    received = 0
    with reading(log, "0") as reader:
        for written in range(40_000, 2_000_000, 40_000):
            append(log, b"x" * 40_000)
            for event in reader.read():
                received += len(event.data or "")
                assert event.id == "0"
            assert 0 <= written - received <= 64 * 1024
        append(log, b"\n")
        (last,) = reader.read()
    assert received + len(last.data or "") == written
    assert last.id == str(written + 1)


async def test_burst_of_lines(log: Path) -> None:
    count = 100_000
    async with tailing(log, "0") as stream:
        append(log, b"".join(b"%d\n" % n for n in range(count)))
        events = await take(stream, count)
    assert [event.data for event in events] == [str(n) for n in range(count)]
    assert events[-1].id == str(log.stat().st_size)


async def test_file_is_read_outside_of_the_event_loops_thread(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    read = LogReader.read

    def noted(self: LogReader) -> list[ServerSentEvent]:
        threads.add(threading.get_ident())
        return read(self)

    monkeypatch.setattr(LogReader, "read", noted)
    append(log, b"one\n")
    async with tailing(log, "0") as stream:
        await take(stream, 1)
    assert threads
    assert threading.get_ident() not in threads


def complete_lines(content: bytes) -> list[tuple[str, int]]:
    """The lines of `content` that have an end, each with the offset after it."""
    lines: list[tuple[str, int]] = []
    position = 0
    for raw in content.split(b"\n")[:-1]:
        position += len(raw) + 1
        lines.append((raw.removesuffix(b"\r").decode(errors="replace"), position))
    return lines


WRITTEN = st.one_of(
    st.text(alphabet="ab\n\ré", max_size=20).map(str.encode),
    st.binary(max_size=10),
)
LONG = st.sampled_from([b"long" * 10_000, "é".encode() * 100_000])


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(deadline=None, max_examples=50)
@given(steps=st.lists(WRITTEN | LONG | st.tuples(st.integers(0), st.integers(0)), max_size=15))
def test_every_line_exactly_once_however_often_a_client_comes_back(
    backend: str, steps: list[bytes | tuple[int, int]]
) -> None:
    """A step writes bytes, or lets the client take some lines, leave, and come back at any id."""

    async def client(log: Path) -> None:
        content = b""
        lines: list[tuple[str, int]] = []  # what the client has: each line with its id
        position = 0
        async with tailing(log, "0") as stream:
            for step in [*steps, b"\nthe end\n"]:
                if isinstance(step, bytes):
                    content += step
                    append(log, step)
                    continue
                taken, kept = step
                ahead = len(complete_lines(content)) - len(lines)
                await receive(stream, lines, taken % (ahead + 1))
                del lines[kept % (len(lines) + 1) :]
                position = lines[-1][1] if lines else 0
                await stream.aclose()
                stream = follow(str(log), str(position), interval=0.001)
            async with aclosing(stream):
                await receive(stream, lines, len(complete_lines(content)) - len(lines))
        assert lines == complete_lines(content)

    async def receive(stream: Tail, lines: list[tuple[str, int]], count: int) -> None:
        text = ""
        while count:
            (event,) = await take(stream, 1)
            assert event.event is None
            text += event.data or ""
            position = int(event.id or "")
            if position > (lines[-1][1] if lines else 0):  # else a piece of a long line
                lines.append((text, position))
                text = ""
                count -= 1

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "log")
        path.touch()
        anyio.run(client, path, backend=backend)


@settings(deadline=None, max_examples=200)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["append", "append", "rotate", "truncate"]), WRITTEN),
        max_size=20,
    )
)
def test_every_line_of_every_file_exactly_once(steps: list[tuple[str, bytes]]) -> None:
    expected: list[tuple[str | None, str, int]] = []

    def lines_from(content: bytes, start: int) -> None:
        expected.extend(
            (None, text, position) for text, position in complete_lines(content) if position > start
        )

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "log")
        path.touch()
        content = b""
        received: list[ServerSentEvent] = []
        with reading(path, "0") as reader:
            assert reader.read() == []  # it has the file open from here on
            for kind, data in steps:
                start = content.rfind(b"\n") + 1
                unfinished = content[start:].decode(errors="replace")
                if kind == "append":
                    content += data
                    append(path, data)
                else:
                    if unfinished and (content if kind == "truncate" else data):
                        expected.append((None, unfinished, start))
                    if kind == "truncate":
                        if content:
                            expected.append(("restart", "file truncated", 0))
                        content, start = b"", 0
                        path.write_bytes(b"")
                    elif data:
                        expected.append(("restart", "file rotated", 0))
                        content, start = data, 0
                        rotate(path, data)
                lines_from(content, start)
                received += read_all(reader)
    assert [(event.event, event.data, int(event.id or "")) for event in received] == expected


# The machine.


class CPUTimes(NamedTuple):
    user: float
    idle: float
    iowait: float = 0.0
    guest: float = 0.0


class Memory(NamedTuple):
    total: int
    available: int


class Network(NamedTuple):
    bytes_sent: int
    bytes_recv: int


class FakeMachine:
    """Counters that move when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cores = [CPUTimes(100.0, 1000.0), CPUTimes(100.0, 1000.0)]
        self.network: Network | None = Network(5000, 7000)
        self.clock = 50.0
        monkeypatch.setattr(psutil, "cpu_times", lambda percpu: self.cores)
        monkeypatch.setattr(psutil, "net_io_counters", lambda: self.network)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(1000, 400))
        monkeypatch.setattr("sse_asgi.demo.machine.time.monotonic", lambda: self.clock)

    def work(self, *cores: CPUTimes, sent: int = 0, received: int = 0, seconds: float = 1) -> None:
        self.cores = [
            CPUTimes(*(a + b for a, b in zip(before, more, strict=True)))
            for before, more in zip(self.cores, cores, strict=True)
        ]
        assert self.network is not None
        self.network = Network(self.network.bytes_sent + sent, self.network.bytes_recv + received)
        self.clock += seconds


Samples = AsyncGenerator[Sample, None]


async def test_each_viewer_gets_the_load_since_its_own_last_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`psutil.cpu_percent()` would give the second of two viewers the time since the first."""
    machine = FakeMachine(monkeypatch)
    turns: dict[str, anyio.Event] = {}
    results: dict[str, Sample] = {}

    async def sleep(delay: float) -> None:
        turns[anyio.get_current_task().name or ""] = turn = anyio.Event()
        await turn.wait()

    monkeypatch.setattr("sse_asgi.demo.machine.anyio.sleep", sleep)

    async def viewer(name: str) -> None:
        async with aclosing(samples()) as stream:
            async for sample in stream:
                results[name] = sample

    async def until_waiting(name: str) -> None:
        with anyio.fail_after(HANG):
            while name not in turns:
                await anyio.lowlevel.checkpoint()

    async def wake(name: str) -> Sample:
        turns.pop(name).set()
        await until_waiting(name)
        return results[name]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(viewer, "one", name="one")
        await until_waiting("one")
        machine.work(CPUTimes(0.25, 0.75), CPUTimes(0.5, 0.0, 0.5), sent=100, received=300)
        tasks.start_soon(viewer, "two", name="two")
        await until_waiting("two")
        machine.work(CPUTimes(1.0, 0.0, 0.0, 1.0), CPUTimes(0.0, 0.0), received=100)

        one, two = await wake("one"), await wake("two")
        assert (one.cores, one.cpu) == ([62.5, 50.0], 58.3)
        assert (two.cores, two.cpu) == ([100.0, 0.0], 100.0)
        assert (one.received, one.sent) == (200.0, 50.0)
        assert (two.received, two.sent) == (100.0, 0.0)
        assert (one.memory_used, one.memory_total) == (600, 1000)

        # Counters that go back, and a clock that stands still.
        machine.work(CPUTimes(-1.0, 2.0), CPUTimes(0.0, 0.0), sent=-5000, seconds=0)
        one = await wake("one")
        assert (one.cores, one.cpu, one.received, one.sent) == ([0.0, 0.0], 0.0, 0.0, 0.0)
        machine.network = None
        assert (await wake("one")).received == 0.0
        tasks.cancel_scope.cancel()


async def test_samples_of_the_real_machine() -> None:
    async with aclosing(samples(0.01)) as stream:
        with anyio.fail_after(HANG):
            sample = await anext(stream)
    assert 0 <= sample.cpu <= 100
    assert all(0 <= core <= 100 for core in sample.cores)
    assert 0 < sample.memory_used <= sample.memory_total


# The application, in this process and on both event loops.


def demo(log_file: str | None = None, **options: Any) -> ASGIApp:
    """The demo for any name in `Host`: `connect` and httpx choose theirs."""
    return create_app(log_file, names=["demo", "testserver"], **options)


async def test_application(log: Path) -> None:
    app = demo(str(log))
    append(log, b"one\ntwo\n")
    with anyio.fail_after(HANG):
        async with connect(app, "/log") as stream:
            assert [(await stream.receive()).data for _ in range(2)] == ["one", "two"]
            assert stream.reconnection_time == 1000
            append(log, b"three\n")
            assert await stream.receive() == DecodedEvent("message", "three", "14")
        async with connect(app, "/log", headers={"last-event-id": stream.last_event_id}) as stream:
            append(log, b"four\n")
            assert (await stream.receive()).data == "four"
        async with LifespanManager(app), connect(app, "/events") as stream:
            assert (await stream.receive()).event == "machine"
            assert (await stream.receive()).event == "sample"


def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the machine more often than once a second."""
    monkeypatch.setattr("sse_asgi.demo.app.samples", lambda: samples(0.01))


async def numbers(stream: Connection, count: int) -> list[int]:
    """The numbers of the next samples."""
    found: list[int] = []
    while len(found) < count:
        event = await stream.receive()
        assert event.event in {"machine", "sample"}
        if event.event == "sample":
            found.append(json.loads(event.data)["number"])
    return found


async def test_a_new_client_begins_with_the_last_30_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They were measured while nobody was there, or for others."""
    fast(monkeypatch)
    app = demo()
    with anyio.fail_after(HANG):
        async with LifespanManager(app), connect(app, "/events") as first:
            while (await numbers(first, 1))[0] < 40:
                pass
            async with connect(app, "/events") as second:
                before = json.loads((await second.receive()).data)["time"]
                replayed: list[int] = []
                while (sample := json.loads((await second.receive()).data))["time"] <= before:
                    replayed.append(sample["number"])
    # One that came while it connected may be among them.
    assert 30 <= len(replayed) <= 33
    assert replayed == list(range(replayed[0], replayed[0] + len(replayed)))


async def test_a_client_that_comes_back_gets_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    app = demo()
    with anyio.fail_after(HANG):
        async with LifespanManager(app):
            async with connect(app, "/events") as stream:
                seen = await numbers(stream, 5)
            async with connect(app, "/events") as other:
                while (await numbers(other, 1))[0] < seen[-1] + 40:
                    pass
            id = stream.last_event_id
            async with connect(app, "/events", headers={"last-event-id": id}) as stream:
                machine = json.loads((await stream.receive()).data)
                assert machine["last_event_id"] == id
                seen += await numbers(stream, 50)
    assert seen == list(range(seen[0], seen[0] + len(seen)))


async def test_figures_are_those_of_the_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    tally = Tally()
    app = demo(lasting=Lasting(tally))
    with anyio.fail_after(HANG):
        async with LifespanManager(app):
            async with connect(app, "/events") as one, connect(app, "/events") as two:
                while True:
                    event = await one.receive()
                    await two.receive()
                    if event.event == "sample":
                        server = json.loads(event.data)["server"]
                        if server["open"] == 2 and server["events"] > 10:
                            break
                assert server["closed"] == {}
                assert server["bytes"] > server["events"] * 10
                await one.disconnect()
            while (read := tally.figures())["open"]:
                await anyio.sleep(0.01)
    assert read["closed"] == {"client_disconnected": 2}


async def test_figures_of_a_log(log: Path) -> None:
    """All that a client has got is counted, and nothing else."""
    tally = Tally()
    app = demo(str(log), lasting=Lasting(tally))
    append(log, b"one\ntwo\n")
    with anyio.fail_after(HANG):
        async with connect(app, "/log") as stream:
            assert [(await stream.receive()).data for _ in range(2)] == ["one", "two"]
            while (read := tally.figures())["events"] < 3:
                await anyio.sleep(0.01)
            # An id by itself comes first: it is where the client is.
            frames = b"retry: 1000\n\nid: 0\n\nid: 4\ndata: one\n\nid: 8\ndata: two\n\n"
            assert (read["open"], read["events"], read["closed"]) == (1, 3, {})
            assert read["bytes"] == len(frames)


# To end a connection, or all.


async def posted(client: httpx.AsyncClient, path: str, value: Any) -> tuple[int, str]:
    answer = await client.post(path, json=value)
    return answer.status_code, answer.text.strip()


async def until_goodbye(stream: Connection) -> dict[str, Any]:
    """What the last event of a stream says, after which it ends."""
    while (event := await stream.receive()).event != "goodbye":
        pass
    assert [event async for event in stream] == []
    said: dict[str, Any] = json.loads(event.data)
    return said


async def test_a_client_can_end_its_own_stream_and_no_other() -> None:
    app = demo()
    async with speaking_to(app) as client:
        async with connect(app, "/events?client=me") as mine, connect(app, "/events") as other:
            await client.post("/say", json={"text": "before"})
            assert await said(mine) == ["before"]
            assert await posted(client, "/disconnect", {"client": "me"}) == (200, "disconnected")
            assert await until_goodbye(mine) == {"reason": "disconnected", "seconds": None}
            await client.post("/say", json={"text": "after"})
            assert await said(other, 2) == ["before", "after"]
        # It comes back as who it was, and has missed nothing.
        headers = {"last-event-id": mine.last_event_id}
        async with connect(app, "/events?client=me", headers=headers) as mine:
            assert await said(mine) == ["after"]
            assert await posted(client, "/disconnect", {"client": "me"}) == (200, "disconnected")


@pytest.mark.parametrize(
    ("value", "status", "text"),
    [
        ({"client": "nobody"}, 404, "no stream is open whose client is 'nobody'"),
        # Streams that have not said who they are are nobody's.
        ({"client": ""}, 400, 'this takes {"client": the one of /events?client=...}'),
        ({"client": None}, 400, 'this takes {"client": the one of /events?client=...}'),
        ({}, 400, 'this takes {"client": the one of /events?client=...}'),
        ([], 400, 'this takes {"client": the one of /events?client=...}'),
    ],
)
async def test_who_cant_be_disconnected(value: Any, status: int, text: str) -> None:
    app = demo()
    async with speaking_to(app) as client, connect(app, "/events") as stream:
        await stream.receive()
        assert await posted(client, "/disconnect", value) == (status, text)
        await client.post("/say", json={"text": "still here"})
        assert await said(stream) == ["still here"]


async def test_a_stop_says_goodbye_and_ends_all_streams() -> None:
    stopped: list[bool] = []
    lasting = Lasting()
    app = demo(stop=lambda: stopped.append(True), lasting=lasting)
    async with LifespanManager(app), speaking_to(app) as client:
        async with connect(app, "/events") as one, connect(app, "/events") as two:
            machines = [json.loads((await stream.receive()).data) for stream in (one, two)]
            assert [machine["away"] for machine in machines] == [5, 5]
            answer = await posted(client, "/stop", {})
            assert answer == (202, "the server stops, and comes back in 5 s")
            for stream in (one, two):
                assert await until_goodbye(stream) == {"reason": "stopping", "seconds": 5}
        assert stopped == [True]
    # The server that comes back does not stop again at once.
    app = demo(stop=lambda: stopped.append(True), lasting=lasting)
    async with LifespanManager(app), speaking_to(app) as client:
        status, text = await posted(client, "/stop", {})
        assert (status, text[:31]) == (429, "this may be done once in 15 s: ")
        assert stopped == [True]


async def test_a_server_that_may_not_be_stopped() -> None:
    app = demo()
    async with LifespanManager(app), speaking_to(app) as client:
        async with connect(app, "/events") as stream:
            assert json.loads((await stream.receive()).data)["away"] is None
            status, text = await posted(client, "/stop", {})
            assert (status, "--allow-stop" in text) == (403, True)
            await client.post("/say", json={"text": "still here"})
            assert await said(stream) == ["still here"]


# The wall.


@asynccontextmanager
async def speaking_to(app: ASGIApp) -> AsyncGenerator[httpx.AsyncClient, None]:
    transport = httpx.ASGITransport(app)
    with anyio.fail_after(HANG):
        async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
            yield client


async def said(stream: Connection, count: int = 1) -> list[str]:
    """The next messages, without what else there is on the stream."""
    messages: list[str] = []
    while len(messages) < count:
        event = await stream.receive()
        assert event.event in {"machine", "sample", "said"}
        if event.event == "said":
            messages.append(json.loads(event.data)["text"])
    return messages


async def test_what_one_says_everybody_gets() -> None:
    app = demo()
    async with speaking_to(app) as client, connect(app, "/events") as one:
        async with connect(app, "/events") as two:
            for text in ("hello", "<b>&amp;</b> \N{SNOWMAN}"):
                answer = await client.post("/say", json={"text": f" {text}\n"})
                assert answer.status_code == 201
                assert await said(one) == await said(two) == [text]
                # The id of the stream has the place in the other topic, too.
                assert two.last_event_id.endswith(f".{answer.text.strip()}")
        # Who was away gets what it has missed; who comes for the first time what there is.
        for text in ("while", "away"):
            await client.post("/say", json={"text": text})
        async with connect(app, "/events", headers={"last-event-id": two.last_event_id}) as stream:
            assert await said(stream, 2) == ["while", "away"]
        async with connect(app, "/events") as stream:
            assert (await said(stream, 4))[::3] == ["hello", "away"]


async def test_who_says_it() -> None:
    app = demo()
    async with speaking_to(app) as client, connect(app, "/events") as stream:
        assert (await stream.receive()).event == "machine"
        for given, name in ((" <b>Ann</b> ", "<b>Ann</b>"), (" ", "somebody"), (None, "somebody")):
            message = {"text": "hello"} if given is None else {"text": "hello", "name": given}
            await client.post("/say", json=message)
            assert json.loads((await stream.receive()).data)["name"] == name


async def test_what_is_said_again_is_said_once() -> None:
    app = demo()
    async with speaking_to(app) as client, connect(app, "/events") as stream:
        message = {"text": "once", "key": "k" * 64}
        answers = [await client.post("/say", json=message) for _ in range(2)]
        assert answers[0].text == answers[1].text
        await client.post("/say", json={"text": "more"})
        assert await said(stream, 2) == ["once", "more"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 5000,
        b"[]",
        b"{}",
        b'{"text": 1}',
        b'{"text": " \\n"}',
        json.dumps({"text": "x" * 501}).encode(),
        json.dumps({"text": "x", "name": 1}).encode(),
        json.dumps({"text": "x", "name": "x" * 41}).encode(),
        json.dumps({"text": "x", "key": 1}).encode(),
        json.dumps({"text": "x", "key": "x" * 65}).encode(),
    ],
)
async def test_what_cant_be_said(body: bytes) -> None:
    app = demo()
    headers = {"content-type": "application/json"}
    async with speaking_to(app) as client, connect(app, "/events") as stream:
        answer = await client.post("/say", content=body, headers=headers)
        assert (answer.status_code, answer.text[:10]) == (400, "this takes")
        await client.post("/say", json={"text": "x" * 500})
        assert await said(stream) == ["x" * 500]


async def test_half_a_character_can_be_said() -> None:
    """UTF-8 can't carry it, and JSON can."""
    body = b'{"text": "half \\ud83d"}'
    app = demo()
    async with speaking_to(app) as client, connect(app, "/events") as stream:
        headers = {"content-type": "application/json"}
        answer = await client.post("/say", content=body, headers=headers)
        assert answer.status_code == 201
        assert await said(stream) == ["half \ud83d"]


async def test_how_nothing_can_be_said() -> None:
    async with speaking_to(demo()) as client:
        for method in ("GET", "HEAD", "PUT", "OPTIONS"):
            answer = await client.request(method, "/say")
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        # What the form of another site could send.
        answer = await client.post("/say", content='{"text": "x"}')
        assert answer.status_code == 415
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            headers = {"content-type": f"{kind}; charset=application/json"}
            answer = await client.post("/say", content='{"text": "x"}', headers=headers)
            assert answer.status_code == 415

        headers = {"content-type": "Application/JSON; charset=utf-8"}
        body = b'{"text": "x"}'.rjust(8192)
        assert (await client.post("/say", content=body, headers=headers)).status_code == 201


async def test_what_is_too_long_is_not_read_to_its_end() -> None:
    parts = 0

    async def receive() -> Message:
        nonlocal parts
        parts += 1
        return {"type": "http.request", "body": b" " * 2731, "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    sent: list[Message] = []
    headers = [(b"host", b"demo"), (b"content-type", b"application/json")]
    scope: Scope = {"type": "http", "method": "POST", "path": "/say", "headers": headers}
    with anyio.fail_after(HANG):
        await demo()(scope, receive, send)
    assert (parts, sent[0]["status"]) == (3, 413)  # 8193 bytes


# The program.


class Program:
    """`python -m sse_asgi`, running."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.greeting = process.stdout.readline()
        assert self.greeting, f"it did not start: {process.communicate(timeout=HANG)[1]}"
        (self.url,) = (word for word in self.greeting.split() if word.startswith("http://"))
        self.hint = process.stdout.readline()

    def stop(self, signal_number: int) -> tuple[int, str, str]:
        """Send the signal; return the exit status and what it printed after the greeting."""
        self.process.send_signal(signal_number)
        out, err = self.process.communicate(timeout=HANG)
        return self.process.returncode, out, err


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "sse_asgi", *arguments]


def environment() -> dict[str, str]:
    # The package that is being tested, be it installed or not.
    return {**os.environ, "PYTHONPATH": str(Path(sse_asgi.__file__).parents[1])}


@contextmanager
def running(*arguments: str) -> Iterator[Program]:
    with subprocess.Popen(
        command("--port", "0", *arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=HANG, trust_env=False) as client:
        yield client


@contextmanager
def streaming(
    client: httpx.Client, url: str, last_event_id: str = ""
) -> Iterator[Iterator[DecodedEvent]]:
    headers = {"last-event-id": last_event_id} if last_event_id else {}
    with client.stream("GET", url, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        decoder = EventStreamDecoder(last_event_id=last_event_id)
        yield (event for chunk in response.iter_raw() for event in decoder.feed(chunk))


def test_page(client: httpx.Client) -> None:
    with running() as program:
        assert program.url.startswith("http://127.0.0.1:")
        response = client.get(program.url)
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.text.startswith("<!doctype html>")
        assert "--tail FILE" in response.text
        head = client.head(program.url)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(response.content))
        # There is no log without --tail.
        for path in ("log", "favicon.ico", "events/"):
            assert client.get(program.url + path).status_code == 404


def test_page_and_its_files_are_all_there_is(client: httpx.Client) -> None:
    with running() as program:
        page = client.get(program.url)
        names = re.findall(r'(?:src|href)="([^":]+)"', page.text)
        texts = {"": page}
        for name in names:
            texts[name] = client.get(program.url + name)
            # A module names others.
            names += re.findall(r'^import .* from "./(.+)";', texts[name].text, re.MULTILINE)
        assert {"app.py", "charts.js", "log.js", "page.js", "style.css", "wall.js"} < set(names)
        types = {"": "html", "css": "css", "js": "javascript", "py": "plain"}
        for name, response in texts.items():
            assert response.status_code == 200, name
            kind = types[name.rpartition(".")[2]]
            assert response.headers["content-type"] == f"text/{kind}; charset=utf-8"
            assert response.headers["content-security-policy"].startswith("default-src 'none';")
            text = response.text.replace("http://www.w3.org/2000/svg", "")  # no address, a name
            for outside in ("http:", "https:", "//cdn", "@import", "url("):
                assert outside not in text, name
            for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"):
                assert unsafe not in text, name
            answer = client.post(program.url + name)
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_picture_in_the_readme() -> None:
    """``python -m tests.browser.picture`` makes it."""
    root = Path(__file__).parents[1]
    assert "](docs/images/demo.png)" in root.joinpath("README.md").read_text("utf-8")
    picture = root.joinpath("docs", "images", "demo.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 200_000


def test_stats_are_this_machines(client: httpx.Client) -> None:
    with running() as program, ExitStack() as stack:
        viewers = [stack.enter_context(streaming(client, f"{program.url}events")) for _ in range(3)]
        for events in viewers:
            machine = next(events)
            assert machine.event == "machine"
            described = json.loads(machine.data)
            assert described["memory"] == psutil.virtual_memory().total
            assert described["log"] is None
        for _ in range(2):
            for events in viewers:
                event = next(events)
                assert event.event == "sample"
                assert event.id
                sample = json.loads(event.data)
                assert 0 <= sample["cpu"] <= 100
                assert len(sample["cores"]) == described["cores"]
                assert 0 < sample["memory_used"] <= sample["memory_total"]
                assert sample["received"] >= 0
                assert sample["sent"] >= 0


def test_ping_option(client: httpx.Client, log: Path) -> None:
    comments: list[str] = []
    decoder = EventStreamDecoder(on_comment=comments.append)
    with running("--ping", "0.05", "--tail", str(log)) as program:
        with client.stream("GET", f"{program.url}log") as response:
            for chunk in response.iter_raw():
                decoder.feed(chunk)
                if len(comments) >= 3:
                    break


def test_log_survives_a_killed_server(client: httpx.Client, log: Path) -> None:
    """SIGKILL in mid-stream and a new process, again and again, while the log grows."""
    expected = [f"line {n} <b>&amp;</b> é" for n in range(3000)]
    received: list[str] = []
    last_event_id = "0"
    kills = 0
    stop = threading.Event()

    def write() -> None:
        with log.open("a", encoding="utf-8", buffering=1) as file:
            for n, text in enumerate(expected):
                # Never far ahead, so that it is still writing when the server is killed.
                while n > len(received) + 300:
                    if stop.wait(0.001):
                        return
                file.write(f"{text}\n")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(received) < len(expected):
            enough = min(len(received) + 400, len(expected))
            with running("--tail", str(log)) as program:
                with streaming(client, f"{program.url}log", last_event_id) as events:
                    try:
                        for event in events:
                            assert event.event == "message"
                            received.append(event.data)
                            last_event_id = event.id
                            if len(received) == enough:
                                program.process.kill()
                    except httpx.TransportError:  # it was cut, not ended
                        kills += 1
    finally:
        stop.set()
        writer.join()
    assert received == expected
    assert last_event_id == str(log.stat().st_size)
    assert kills > 3


def test_wall_of_a_server_that_was_killed(client: httpx.Client) -> None:
    """Its messages are gone, and whoever comes back is told so."""
    with running() as program:
        before = client.post(f"{program.url}say", json={"text": "before"}).text.strip()
        program.process.kill()
    with running() as program:
        client.post(f"{program.url}say", json={"text": "after"})
        with streaming(client, f"{program.url}events?last_event_id={before}") as events:
            others = (event for event in events if event.event != "sample")
            _, *gaps, said = (next(others) for _ in range(4))
            assert {gap.event for gap in gaps} == {"gap"}
            told = {json.loads(gap.data)["topic"]: json.loads(gap.data)["missed"] for gap in gaps}
            assert told == {"machine": None, "wall": None}
            assert json.loads(said.data)["text"] == "after"


def until_away(client: httpx.Client, url: str) -> None:
    """Wait until nobody listens."""
    with pytest.raises(httpx.ConnectError):
        while True:
            with suppress(httpx.ReadError, httpx.RemoteProtocolError):  # it closes under us
                client.get(url)


def until_back(client: httpx.Client, url: str) -> None:
    while True:
        try:
            assert client.get(url).status_code == 200
        except httpx.ConnectError:
            time.sleep(0.05)
        else:
            return


def test_stop_and_come_back(client: httpx.Client, log: Path) -> None:
    """What the server knew is gone then, but not the figures of the program."""
    append(log, b"one\n")
    with running("--tail", str(log)) as program:
        with streaming(client, f"{program.url}events?client=me") as events:
            with streaming(client, f"{program.url}log") as lines:
                assert next(events).event == "machine"
                assert next(lines).data == "one"
                client.post(f"{program.url}say", json={"text": "forget it"})
                assert client.post(f"{program.url}stop", json={}).status_code == 202
                *_, last = events
                assert json.loads(last.data) == {"reason": "stopping", "seconds": 5}
                assert list(lines) == []
        until_away(client, program.url)
        until_back(client, program.url)
        with streaming(client, f"{program.url}events") as events:
            assert next(events).event == "machine"
            sample = next(events)
            assert sample.event == "sample"  # nothing is on the wall
            assert json.loads(sample.data)["server"]["closed"] == {"shutdown": 2}
        assert program.stop(signal.SIGTERM) == (0, "", "")


def test_signal_while_there_is_no_server(client: httpx.Client) -> None:
    with running() as program:
        assert client.post(f"{program.url}stop", json={}).status_code == 202
        until_away(client, program.url)
        assert program.stop(signal.SIGTERM) == (0, "", "")


def test_port_that_somebody_has_taken_meanwhile(client: httpx.Client) -> None:
    with running() as program:
        assert client.post(f"{program.url}stop", json={}).status_code == 202
        port = int(program.url.rstrip("/").rpartition(":")[2])
        while True:
            try:
                taken = socket.create_server(("127.0.0.1", port))
                break
            except OSError:
                time.sleep(0.01)
        with taken:
            out, err = program.process.communicate(timeout=HANG)
        assert (program.process.returncode, out) == (2, "")
        assert err.startswith(f"python -m sse_asgi: error: can't listen again on port {port}: ")


def test_other_addresses_than_loopback(client: httpx.Client) -> None:
    """There only an option lets visitors stop the server."""
    for options, status in (((), 403), (("--allow-stop",), 202)):
        with running("--host", "0.0.0.0", *options) as program:
            assert client.post(f"{program.url}stop", json={}).status_code == status


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_it_answers_to_its_own_names_only(client: httpx.Client, address: str) -> None:
    """A page of another site may let its own name point to this machine."""
    with running("--host", address, "--allow-host", "Demo.example") as program:
        for path in ("", "events", "page.js", "say"):
            answer = client.get(program.url + path, headers={"host": "evil.example"})
            assert answer.status_code == 421
            assert "'evil.example' is no name of this demo" in answer.text
            assert "demo.example" in answer.text
        port = program.url.rstrip("/").rpartition(":")[2]
        own = socket.gethostname()
        for host in (f"localhost:{port}", "[::1]:1", "192.0.2.1", "DEMO.example", own):
            assert client.get(program.url, headers={"host": host}).status_code == 200


def test_log_is_rotated_and_truncated(client: httpx.Client, log: Path) -> None:
    append(log, b"".join(b"old %d\n" % n for n in range(20)))
    with running("--tail", str(log)) as program:
        with streaming(client, f"{program.url}events") as events:
            assert json.loads(next(events).data)["log"] == str(log)
        with streaming(client, f"{program.url}log") as events:
            assert [next(events).data for _ in range(10)] == [f"old {n}" for n in range(10, 20)]
            rotate(log, b"new\n")
            assert next(events) == DecodedEvent("restart", "file rotated", "0")
            assert next(events) == DecodedEvent("message", "new", "4")
            log.write_bytes(b"")
            assert next(events) == DecodedEvent("restart", "file truncated", "0")
        append(log, b"newest\n")
        with streaming(client, f"{program.url}log", "4") as events:
            assert next(events) == DecodedEvent("restart", "unknown position", "0")
            assert next(events) == DecodedEvent("message", "newest", "7")
        # An EventSource made by a script can't set a header.
        append(log, b"more\n")
        with streaming(client, f"{program.url}log?last_event_id=7") as events:
            assert next(events) == DecodedEvent("message", "more", "12")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_signal_ends_it_at_once_with_open_streams(
    client: httpx.Client, log: Path, number: int
) -> None:
    append(log, b"line\n")
    with running("--tail", str(log)) as program:
        with streaming(client, f"{program.url}events") as stats:
            with streaming(client, f"{program.url}log") as lines:
                assert next(stats).event == "machine"
                assert next(lines).data == "line"
                assert program.stop(number) == (0, "", "")
                # Both responses were ended, not cut: httpx would raise.
                assert list(lines) == []
                *before, last = stats
                assert {event.event for event in before} <= {"sample"}
                assert json.loads(last.data) == {"reason": "stopping", "seconds": None}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_signal_as_soon_as_it_has_printed_its_url(number: int) -> None:
    with running() as program:
        assert program.stop(number) == (0, "", "")


def test_prints_one_line_with_the_url(client: httpx.Client) -> None:
    with running("--host", "0.0.0.0") as program:
        assert program.greeting.count("\n") == 1
        assert program.url.startswith("http://127.0.0.1:")
        assert client.get(program.url).status_code == 200
        assert program.stop(signal.SIGTERM) == (0, "", "")


def fails(*arguments: str, program: list[str] | None = None) -> str:
    """Run the program, which must exit with status 2 after one line; return that."""
    process = subprocess.run(
        [*(program or command()), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert (process.returncode, process.stdout) == (2, ""), process.stderr
    assert process.stderr.startswith("python -m sse_asgi: error: ")
    assert process.stderr.count("\n") == 1
    assert process.stderr.endswith("\n")
    return process.stderr


WRONG_ARGUMENTS = [
    (["--port", "65536"], "from 0 to 65535"),
    (["--port=-1"], "from 0 to 65535"),
    (["--port", "http"], "from 0 to 65535"),
    (["--ping=-1"], "seconds"),
    (["--ping", "nan"], "seconds"),
    (["--ping", "inf"], "seconds"),
    (["--ping", "often"], "seconds"),
    (["--host", "name.invalid"], "can't listen on 'name.invalid'"),
    (["--host", "192.0.2.1"], "can't listen on '192.0.2.1'"),  # RFC 5737: nobody's
    (["--host", "two..dots"], "can't listen on 'two..dots'"),
    (["--tail", "/no/such/file"], "'/no/such/file': No such file"),
    (["--tail", "/no/such\nfile"], r"'/no/such\nfile'"),
    (["--tail", os.sep], "not a regular file"),
    (["--tail", os.devnull], "not a regular file"),
    (["--frobnicate"], "--frobnicate"),
]


@pytest.mark.parametrize(
    ("arguments", "said"), WRONG_ARGUMENTS, ids=[" ".join(a) for a, _ in WRONG_ARGUMENTS]
)
def test_wrong_arguments(arguments: list[str], said: str) -> None:
    assert said in fails(*arguments)


def test_port_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"can't listen on '127.0.0.1', port {port}: " in fails("--port", str(port))


def test_tail_of_a_pipe_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in fails("--tail", str(tmp_path / "pipe"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_tail_of_a_file_that_cant_be_read(log: Path) -> None:
    log.chmod(0)
    assert "Permission denied" in fails("--tail", str(log))


@pytest.mark.parametrize("missing", ["uvicorn", "psutil"])
def test_missing_dependency(missing: str) -> None:
    script = (
        "import runpy, sys; "
        f"sys.modules[{missing!r}] = None; "
        "runpy.run_module('sse_asgi', run_name='__main__', alter_sys=True)"
    )
    said = fails(program=[sys.executable, "-c", script])
    assert f"{missing} is not installed: pip install {missing}" in said


def test_file_name_that_is_no_text(client: httpx.Client, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path / "app") + b"\xff.log"
    with open(name, "wb") as file:
        file.write(b"line\n")
    with running("--tail", os.fsdecode(name)) as program:
        with streaming(client, f"{program.url}events") as events:
            assert "app\N{REPLACEMENT CHARACTER}.log" in next(events).data
        with streaming(client, f"{program.url}log") as events:
            assert next(events).data == "line"
