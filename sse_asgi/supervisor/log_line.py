"""The line in the log about a stream that has ended."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..reasons import CloseReason

if TYPE_CHECKING:
    from ..reasons import CloseReport
    from ..types import Scope

__all__ = ["level_of", "log_end"]

logger: logging.Logger = logging.getLogger("sse_asgi")

#: Ends that somebody may want to look into. It is normal that clients leave and servers stop.
ABNORMAL = {CloseReason.SEND_TIMEOUT, CloseReason.ERROR, CloseReason.CANCELLED}

#: How many characters of the address and of the method are shown.
LONGEST = 100


def level_of(reason: CloseReason, *, started: bool) -> int:
    """Return the level of the line: WARNING if the end is abnormal, else DEBUG.

    :param started: whether the response has started. If not, something else answers the request.
    """
    return logging.WARNING if started and reason in ABNORMAL else logging.DEBUG


def log_end(level: int, scope: Scope, report: CloseReport) -> None:
    """Log the end of a stream.

    Without a traceback: the exception goes on to the server, or to ``on_error``.
    """
    client = scope.get("client")
    peer = "an unknown client"
    if client:
        host, port = (*map(_escaped, client), "")[:2]
        peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    fields: dict[str, Any] = {
        "peer": peer if client else None,
        "method": _escaped(scope.get("method")),
        "path": scope.get("path"),
        "reason": report.reason.value,
        "events": report.events,
        "bytes": report.bytes,
        "seconds": round(report.duration, 3),
        "error": None if report.error is None else type(report.error).__qualname__,
    }
    error = "" if report.error is None else f" ({fields['error']})"
    # Clients choose the path: with %r it stays one line. They may choose the rest, too.
    logger.log(
        level,
        "a stream has ended: %s%s, %s %.200r from %s, %d events in %.3f s",
        fields["reason"], error, fields["method"], fields["path"], peer,
        report.events, report.duration,
        extra=fields,
    )  # fmt: skip


def _escaped(value: object) -> str:
    """Return a text of one line: a proxy may have taken the address from a header field."""
    return ascii(str(value)[:LONGEST])[1:-1]
