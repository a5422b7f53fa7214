"""What a response means to an event source (WHATWG HTML 9.2.3). Pure, no I/O, no clock."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["Answer", "Meaning", "answer_of"]

#: Statuses that say "later" if they say when (RFC 9110, 10.2.3; RFC 6585, 4).
LATER = frozenset({429, 503})

#: A value of a list; a comma within quotes does not end it.
_VALUE = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*"?)+')

#: A MIME type, with or without parameters. Its parts are tokens (RFC 9110, 5.6.2).
_MIME_TYPE = re.compile(
    r"[ \t\r\n]*([!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t\r\n]*(?:;|$)"
)


class Meaning(Enum):
    """What a client does after a response."""

    STREAM = auto()  #: read it
    END = auto()  #: never connect again
    LATER = auto()  #: connect again
    WRONG_STATUS = auto()  #: fail
    WRONG_TYPE = auto()  #: fail


@dataclass(frozen=True, slots=True)
class Answer:
    """What a response means."""

    meaning: Meaning
    #: In seconds, how long the server asks to wait.
    retry_after: float = 0.0


def answer_of(
    status_code: int, headers: Mapping[str, str], retry_on: Collection[int], now: datetime
) -> Answer:
    """Return what a response means.

    :param headers: its header fields, found by names in lower case.
    :param retry_on: further statuses after which the client connects again.
    :param now: the time, for a ``Retry-After`` that is a date.
    """
    if status_code == 200:
        is_stream = _essence(headers.get("content-type", "")) == "text/event-stream"
        return Answer(Meaning.STREAM if is_stream else Meaning.WRONG_TYPE)
    if status_code == 204:
        return Answer(Meaning.END)
    wait = _retry_after(headers, now)
    if status_code in retry_on or (status_code in LATER and wait is not None):
        return Answer(Meaning.LATER, wait or 0.0)
    return Answer(Meaning.WRONG_STATUS)


def _essence(content_type: str) -> str | None:
    """Return the type and subtype of a ``Content-Type`` ("extract a MIME type" of Fetch).

    Of several, in one field or in many, the last counts that is one.
    """
    types = map(_MIME_TYPE.match, _VALUE.findall(content_type))
    essences = [found[1].lower() for found in types if found is not None]
    return next((essence for essence in reversed(essences) if essence != "*/*"), None)


def _retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds of a ``Retry-After`` (RFC 9110, 10.2.3), or ``None``."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    if (until := _date(value)) is None:
        return None
    # The clock of the server may differ from ours, so its own date counts if it says one.
    since = _date(headers.get("date", "")) or now
    return max((until - since).total_seconds(), 0.0)


def _date(value: str) -> datetime | None:
    """Return an HTTP date (RFC 9110, 5.6.7); ``None``: it is none."""
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    # The form of asctime() names no zone, and means UTC.
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
