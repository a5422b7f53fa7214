"""Tell which server a request came from. All have one interface (``base.py``)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .base import Server
from .uvicorn import Uvicorn, has_unwritten, is_closing, is_uvicorns

if TYPE_CHECKING:
    from ..runtime.base import Runtime
    from ..types import Scope, Send
    from .base import Stopping
    from .connections import Connections

__all__ = ["has_unwritten", "recognise", "sends_at_once"]


def recognise(scope: Scope, send: Send, runtime: Runtime, stopping: Stopping) -> Server:
    """Return the server of a request: one that keeps to ASGI, unless it is known to differ."""
    return _kind(scope, send, runtime)(scope, send, stopping, runtime.own(_connections))


def sends_at_once(send: Send) -> bool:
    """Return whether a ``send`` that waits has written nothing: see ``Server.sends_at_once``.

    Not if its connection is known to be lost.
    """
    return is_uvicorns(send) and not is_closing(send)


def _connections() -> Connections:
    from .connections import Connections  # not before there is a stream

    return Connections()


def _kind(scope: Scope, send: Send, runtime: Runtime) -> type[Server]:
    if runtime.joins and is_uvicorns(send):
        return Uvicorn
    # Only the scope of daphne has no version of the specification.
    if "daphne.server" in sys.modules and "spec_version" not in scope.get("asgi", {}):
        from .daphne import Daphne

        return Daphne
    if "hypercorn.trio" in sys.modules or scope.get("http_version") in ("2", "3"):
        from . import hypercorn

        return hypercorn.kind(scope)
    return Server
