"""Decode bytes to events as they come (WHATWG HTML 9.2.5 and 9.2.6). Pure, no I/O.

The bytes are cut into lines and fields, and only the values of an event are decoded. The result is
the same as if all was decoded first: a UTF-8 decoder never takes an ASCII byte for part of a broken
sequence, so it leaves CR, LF, colon and space alone. A character that is split between two chunks
stays whole, and there is no decoder state to keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .errors import DEFAULT_MAX_EVENT_SIZE, EventTooLargeError
from .models import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable

ModelT = TypeVar("ModelT")

__all__ = ["DEFAULT_MAX_EVENT_SIZE", "MAX_RECONNECTION_TIME", "DecodedEvent", "EventStreamDecoder"]


#: In milliseconds; a larger ``retry`` counts as this. It is the largest integer that JavaScript
#: holds exactly, so the largest that a client in a browser or in Node can mean.
MAX_RECONNECTION_TIME = 2**53 - 1

_BOM = b"\xef\xbb\xbf"

# A chunk is cut into lines block by block: a list of all its lines could need 20 times its memory.
_BLOCK_SIZE = 2**14


@dataclass(frozen=True, slots=True)
class DecodedEvent:
    """An event as a browser's ``EventSource`` dispatches it (WHATWG HTML 9.2.6).

    :param event: its type.
    :param data: its text: the lines of data, joined by LF.
    :param id: the last event ID of the stream when the event was dispatched. So an event without
        an id of its own has the id of an earlier one.
    """

    event: str = "message"
    data: str = ""
    id: str = ""

    @overload
    def json(self) -> Any: ...

    @overload
    def json(self, model: type[ModelT]) -> ModelT: ...

    @overload
    def json(self, model: Any) -> Any: ...

    def json(self, model: Any = None) -> Any:
        """Decode the data, which is JSON, and return its value.

        :param model: the type of the value: a Pydantic model, a msgspec struct, or with Pydantic
            any type that it knows, such as a dataclass or ``list[int]``. By default the value is
            what :func:`json.loads` makes of the data.
        :raises ValueError: the data is not JSON, or not what the model takes.
        :raises TypeError: the type needs Pydantic, which is not installed.
        """
        return parse_json(self.data, model)


class EventStreamDecoder:
    """A parser of one event stream (WHATWG HTML 9.2.6). The bytes may be cut anywhere.

    :param max_event_size: in bytes, the limit for what is kept of an unfinished event: its data,
        event type and id, and the line being received, even a comment or an unknown field. The
        borders of chunks make no difference to it.
    :param on_comment: called within :meth:`feed` with the text of each comment. It must not raise.
        The text is what follows the colon, without a first space: ``: text`` gives ``text``. (This
        is as in a field. The standard ignores comments, and says nothing about the space.)
    :param last_event_id: the last event ID until the stream sets another, for a client that
        reconnects. (By the letter of the standard it is empty at the start of each connection, and
        the first event without an id makes the client forget its position. Chromium keeps it too.)
    :raises ValueError: for a ``max_event_size`` less than 1.
    """

    last_event_id: str
    """The id that a client sends as ``Last-Event-ID`` when it reconnects.

    It is set when an event is dispatched, even if the event has no data and is not returned.
    """

    reconnection_time: int | None
    """The latest valid ``retry`` in milliseconds, at most :data:`MAX_RECONNECTION_TIME`.

    ``None``: the stream has not set it.
    """

    def __init__(
        self,
        *,
        max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
        on_comment: Callable[[str], object] | None = None,
        last_event_id: str = "",
    ) -> None:
        if max_event_size < 1:
            raise ValueError(f"max_event_size must be at least 1 byte, not {max_event_size}")
        self.max_event_size = max_event_size
        self.on_comment = on_comment
        self.last_event_id = last_event_id
        self.reconnection_time = None

        # The first bytes while they may begin a byte order mark; None once that is decided.
        self._start: bytes | None = b""
        # The line being received, and whether an LF that comes now belongs to the CR before it.
        self._line = bytearray()
        self._after_cr = False
        # The buffers of the event being received, in UTF-8. An id stays here until dispatch:
        # together with `last_event_id` it is the standard's last event ID buffer.
        self._data = bytearray()
        self._event_type = b""
        self._id: bytes | None = None

        self._too_large = False
        self._ended = False

    def feed(self, chunk: bytes) -> list[DecodedEvent]:
        """Return the events that ``chunk`` completes, in order.

        :param chunk: the next bytes of the stream, cut anywhere.
        :raises EventTooLargeError: if an event is larger than ``max_event_size``. Events that the
            same chunk completed before it are returned, and the next call raises. Every call after
            that raises too, since the stream has lost an event.
        :raises ValueError: if the stream has ended (:meth:`feed_eof`).
        """
        if self._too_large:
            raise self._error()
        if self._ended:
            raise ValueError("the event stream has ended")

        if self._start is not None:
            chunk = self._start + chunk
            if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
                self._start = chunk
                return []
            self._start = None
            chunk = chunk.removeprefix(_BOM)

        events: list[DecodedEvent] = []
        for begin in range(0, len(chunk), _BLOCK_SIZE):
            try:
                self._receive(chunk[begin : begin + _BLOCK_SIZE], events)
            except EventTooLargeError:
                self._too_large = True
                self._discard()
                if not events:
                    raise
                break
        return events

    def feed_eof(self) -> None:
        """End the stream, and discard an unfinished event as WHATWG HTML 9.2.6 demands.

        :raises EventTooLargeError: if an event was too large. Only this call tells so if the event
            was in the last chunk, after events that were returned.
        """
        if self._too_large:
            raise self._error()
        self._ended = True
        self._discard()

    def _receive(self, block: bytes, events: list[DecodedEvent]) -> None:
        """Cut a non-empty block into lines (9.2.5) and interpret those that are complete."""
        if self._after_cr and block[:1] == b"\n":
            block = block[1:]
        self._after_cr = block[-1:] == b"\r"

        # For bytes, unlike str, these are the standard's line ends: CRLF, LF and CR, no others.
        lines = block.splitlines()
        rest = lines.pop() if lines and block[-1] not in b"\r\n" else b""

        if lines and self._line:
            lines[0] = bytes(self._line) + lines[0]
            self._line.clear()
        for line in lines:
            if line:
                self._check_size(len(line))
                self._interpret(line)
            else:
                self._dispatch(events)
        if rest:
            self._check_size(len(self._line) + len(rest))
            self._line += rest

    def _check_size(self, line_size: int) -> None:
        """Check that the event has room for a line of this size.

        Every line counts, even one that is ignored later. What an unfinished line will be is not
        known yet, so any other limit would depend on how the stream is cut into chunks.

        :raises EventTooLargeError: if it has no room.
        """
        held = len(self._data) + len(self._event_type) + len(self._id or b"")
        if held + line_size > self.max_event_size:
            raise self._error()

    def _interpret(self, line: bytes) -> None:
        """Process one line that is not blank (9.2.6)."""
        field, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]

        if field == b"data":
            self._data += value
            self._data += b"\n"
        elif field == b"event":
            self._event_type = value
        elif field == b"id":
            if b"\0" not in value:
                self._id = value
        elif field == b"retry":
            # For bytes, `isdigit()` accepts only ASCII digits, and at least one of them.
            if value.isdigit():
                self.reconnection_time = _saturated_int(value)
        elif not field and self.on_comment is not None:
            self.on_comment(_decode(value))

    def _dispatch(self, events: list[DecodedEvent]) -> None:
        """Dispatch the event (9.2.6) if it has data, and prepare for the next."""
        if self._id is not None:
            self.last_event_id = _decode(self._id)
            self._id = None
        if self._data:
            del self._data[-1]  # the LF after the last line
            event_type = _decode(self._event_type) if self._event_type else "message"
            events.append(DecodedEvent(event_type, _decode(self._data), self.last_event_id))
            self._data.clear()
        self._event_type = b""

    def _discard(self) -> None:
        self._line.clear()
        self._data.clear()
        self._event_type = b""
        self._id = None

    def _error(self) -> EventTooLargeError:
        return EventTooLargeError(
            f"an event of the stream is larger than max_event_size ({self.max_event_size} bytes)"
        )


def _decode(text: bytes | bytearray) -> str:
    # With "replace", Python puts a U+FFFD for each maximal broken part, as the UTF-8 decoder of the
    # Encoding Standard does. It keeps a BOM: only one at the start of the stream is removed.
    return text.decode("utf-8", "replace")


def _saturated_int(digits: bytes) -> int:
    # int() refuses thousands of digits, zeros in front included.
    digits = digits.lstrip(b"0")
    if len(digits) > len(str(MAX_RECONNECTION_TIME)):
        return MAX_RECONNECTION_TIME
    return min(int(digits or b"0"), MAX_RECONNECTION_TIME)
