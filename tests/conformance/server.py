"""One server for all cases, which says what it is told to, byte by byte."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from .model import Answer, Case, Received

T = TypeVar("T")

#: What a page loads that follows cases (drivers.py).
SCRIPT = Path(__file__).with_name("follow.mjs")

PAGE = b"""<!doctype html>
<meta charset="utf-8">
<link rel="icon" href="data:,">
<script type="module">
import {follow} from "/follow.mjs";
window.follow = follow;
</script>
"""


#: In seconds, how long no request must have come before chunks are sent one by one: a client that
#: is busy with other cases would read several at once.
QUIET = 0.25


class Server:
    """Serves the cases at `/0`, `/1` and so on, in a thread of its own."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.received: dict[int, list[Received]] = defaultdict(list)
        self._cases = cases
        self._ended: dict[int, float] = {}
        self._latest = 0.0  # when the latest request came
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._begin, "127.0.0.1", 0, backlog=512))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one request: there are no more on a connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.split(b"\r\n")
            target = lines[0].split(b" ")[1].decode()
            pairs = (line.partition(b":") for line in lines[1:] if line)
            fields = {name.decode().lower(): value.strip(b" \t") for name, _, value in pairs}
            await self._answer(target, fields, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            writer.close()

    async def _answer(
        self,
        target: str,
        fields: dict[str, bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        digits = target[1:4]
        if not digits.isdigit():
            script = target == "/follow.mjs"
            kind = "text/javascript" if script else "text/html"
            writer.write(head_of(Answer(headers=(("Content-Type", kind),))))
            writer.write(SCRIPT.read_bytes() if script else PAGE)
            await writer.drain()
            return
        number = int(digits)
        had = self.received[number]
        self._latest = time.monotonic()
        after = time.monotonic() - self._ended.get(number, 0.0)
        answers = self._cases[number].answers
        answer = answers[min(len(had), len(answers) - 1)]
        had.append(Received(target[4:], fields, after))
        try:
            await self._send(answer, number, reader, writer)
        finally:
            self._ended.setdefault(number, time.monotonic())

    async def _send(
        self,
        answer: Answer,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        if answer.end != "silent":
            writer.write(head_of(answer, f"/{number:03}/"))
        chunked = answer.end in ("chunked", "cut")
        if len(answer.chunks) > 1:
            while time.monotonic() - self._latest < QUIET:
                await asyncio.sleep(QUIET / 5)
        for chunk in answer.chunks:
            if isinstance(chunk, bytes):
                writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
                await writer.drain()
            else:
                await asyncio.sleep(chunk)
        if answer.end == "chunked":
            writer.write(b"0\r\n\r\n")
        elif answer.end == "hold":
            await reader.read()
        elif answer.end == "reset":
            await asyncio.sleep(0.3)  # a reset may overtake what was sent before it
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._ended[number] = time.monotonic()


def head_of(answer: Answer, base: str = "/") -> bytes:
    """The status line and the header fields. A Location is relative to the base."""
    try:
        phrase = HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = "Whatever"
    lines = [f"HTTP/1.1 {answer.status} {phrase}", "Connection: close"]
    for name, value in answer.headers:
        lines.append(f"{name}: {base + value if name == 'Location' else value}")
    if answer.end in ("chunked", "cut"):
        lines.append("Transfer-Encoding: chunked")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
