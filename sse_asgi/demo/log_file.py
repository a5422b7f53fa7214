"""A log file as an event stream: one event a line, whose id is where reading continues."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from sse_asgi import ServerSentEvent

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from io import FileIO

__all__ = ["LogReader", "follow"]

#: Lines from before it came that a new client gets.
HISTORY = 10
#: Bytes read at once, and in the longest piece of a line: what a stream holds in memory.
CHUNK = 64 * 1024
#: Bytes before the position that are looked at again with every read. If they are no longer
#: there, the file is another one, even when it has grown past the position since.
FINGERPRINT = 64


async def follow(
    path: str, last_event_id: str | None = None, *, interval: float = 0.25
) -> AsyncGenerator[ServerSentEvent, None]:
    """Follow the file at ``path``, looking for more every ``interval`` seconds.

    The id of a line is the offset in bytes just after it, so the file itself is the history: a
    client that comes back gets exactly the lines that it has not had, whatever happened to this
    process. A line waits for its newline. One longer than 64 KiB comes in several events, and
    the id is that of the line before until the last of them: who leaves within a line gets all
    of it again.

    Without ``last_event_id`` it begins with the last 10 lines. An event ``restart`` (its data
    says why, its id is 0) says that the file at ``path`` is read from its beginning: it was
    rotated or truncated, or ``last_event_id`` is no position between two of its lines.
    """
    reader = LogReader(path, last_event_id)
    try:
        while True:
            # All I/O happens in there, and not in the event loop's thread.
            events = await anyio.to_thread.run_sync(reader.read)
            for event in events:
                yield event
            if not events:
                await anyio.sleep(interval)
    finally:
        reader.close()


class LogReader:
    """A reader of a file that grows, and that is replaced or truncated now and then.

    It does blocking I/O, and nothing else that depends on time: see :func:`follow`.
    """

    def __init__(self, path: str, last_event_id: str | None) -> None:
        self._path = path
        self._last_event_id = last_event_id
        self._file: FileIO | None = None
        self._start(0)

    def _start(self, offset: int, seen: bytes = b"") -> None:
        self._offset = offset  # where the next read begins
        self._seen = seen  # the bytes just before it
        self._line = offset  # where the line begins that is being read
        self._rest = b""  # what was read of it, and not sent in a piece

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def read(self) -> list[ServerSentEvent]:
        """Events of the next chunk; none at the end of the file, for now."""
        if self._file is None:
            self._file = _open(self._path)
            if self._file is None:  # in the middle of a rotation
                return self._wait()
            return self._first(self._file)
        # In this order nothing is missed: who writes to the new file is done with the old one,
        # and the old one is read to its end after that.
        replaced = self._is_replaced(self._file)
        data = self._next_bytes(self._file)
        if data is None:
            return self._restart("file truncated")
        if data or not replaced:
            return self._lines(data)
        successor = _open(self._path)
        if successor is None:
            return []
        self._file.close()
        self._file = successor
        return self._restart("file rotated")

    def _wait(self) -> list[ServerSentEvent]:
        if self._last_event_id:
            return []
        self._last_event_id = "0"  # whatever the new file will have is new to this client
        return [ServerSentEvent(id=0)]

    def _first(self, file: FileIO) -> list[ServerSentEvent]:
        """Find the client's position in the file just opened."""
        if not self._last_event_id:
            self._go_to(file, _last_lines(file, HISTORY))
            # No data, so a browser dispatches nothing; but it knows its position from here on.
            return [ServerSentEvent(id=self._offset)]
        if self._go_to(file, _position(self._last_event_id)):
            return self.read()
        return self._restart("unknown position")

    def _go_to(self, file: FileIO, offset: int) -> bool:
        """Continue at ``offset``, if a line of the file begins there."""
        if 0 < offset <= os.fstat(file.fileno()).st_size:
            file.seek(max(offset - FINGERPRINT, 0))
            seen = file.read(min(offset, FINGERPRINT))
            if seen.endswith(b"\n"):
                self._start(offset, seen)
                return True
        return offset == 0

    def _is_replaced(self, file: FileIO) -> bool:
        """Whether another file has the path now, and somebody has written to it."""
        try:
            found = os.stat(self._path)
        except OSError:
            return False
        return found.st_size > 0 and not os.path.samestat(found, os.fstat(file.fileno()))

    def _next_bytes(self, file: FileIO) -> bytes | None:
        """Read a chunk; ``None`` if the bytes before it are not those that were there."""
        file.seek(self._offset - len(self._seen))
        data = file.read(len(self._seen) + CHUNK)
        return data[len(self._seen) :] if data.startswith(self._seen) else None

    def _restart(self, reason: str) -> list[ServerSentEvent]:
        # The end of an unfinished line will not come any more.
        events = [self._piece(self._rest)] if self._rest else []
        self._start(0)
        return [*events, ServerSentEvent(reason, event="restart", id=0)]

    def _lines(self, data: bytes) -> list[ServerSentEvent]:
        end = self._offset - len(self._rest)
        *lines, rest = (self._rest + data).split(b"\n")
        self._offset += len(data)
        self._seen = (self._seen + data)[-FINGERPRINT:]
        events: list[ServerSentEvent] = []
        for line in lines:
            end += len(line) + 1
            last = self._cut(line, events).removesuffix(b"\r")
            events.append(ServerSentEvent(_text(last), id=end))
            self._line = end
        self._rest = self._cut(rest, events)
        return events

    def _cut(self, line: bytes, events: list[ServerSentEvent]) -> bytes:
        """Cut pieces off ``line`` until what is left is short enough; return that."""
        while len(line) > CHUNK:
            cut = CHUNK
            # Not within a character: such bytes are what continues one in UTF-8.
            while line[cut] & 0xC0 == 0x80 and cut > CHUNK - 4:
                cut -= 1
            events.append(self._piece(line[:cut]))
            line = line[cut:]
        return line

    def _piece(self, part: bytes) -> ServerSentEvent:
        """Make the event of a part of a line: reading continues at the beginning of the line."""
        return ServerSentEvent(_text(part), id=self._line)


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")


def _position(last_event_id: str) -> int:
    """Turn an id that a client sent into an offset; -1 if it never was one of ours."""
    if last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 19:
        return int(last_event_id)
    return -1


def _last_lines(file: FileIO, count: int) -> int:
    """Find where the last ``count`` complete lines begin."""
    start = file.seek(0, os.SEEK_END)
    newlines = -1  # the first one found ends the last of these lines
    while start > 0:
        end, start = start, max(start - CHUNK, 0)
        file.seek(start)
        block = file.read(end - start)
        found = len(block)
        while (found := block.rfind(b"\n", 0, found)) >= 0:
            newlines += 1
            if newlines == count:
                return start + found + 1
    return 0


def _open(path: str) -> FileIO | None:
    """Open the file, if it is there: reading anything but a regular file could block for ever."""
    try:
        return open(path, "rb", buffering=0) if stat.S_ISREG(os.stat(path).st_mode) else None
    except OSError:
        return None
