"""hypercorn: what differs on HTTP/2 and HTTP/3, and on trio."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .base import Server

if TYPE_CHECKING:
    from typing import ClassVar

    from ..types import Scope

__all__ = ["HypercornHTTP2", "HypercornTrio", "HypercornTrioHTTP2", "kind"]


class HypercornHTTP2(Server):
    """hypercorn on HTTP/2 and HTTP/3."""

    __slots__ = ()

    hides_broken_responses: ClassVar[bool] = True
    #: When it stops, it waits until data is written, and not until an empty last message is.
    loses_empty_ends: ClassVar[bool] = True


class HypercornTrio(Server):
    """hypercorn on trio."""

    __slots__ = ()

    shields_sends: ClassVar[bool] = True


class HypercornTrioHTTP2(HypercornTrio, HypercornHTTP2):
    """hypercorn on trio, on HTTP/2 and HTTP/3."""

    __slots__ = ()


def kind(scope: Scope) -> type[Server]:
    """Return the class for a request that may have come from hypercorn."""
    # Of all servers only hypercorn offers HTTP/2 push.
    http2 = scope.get("http_version") in ("2", "3") and "http.response.push" in (
        scope.get("extensions") or {}
    )
    # No scope tells whether it runs on trio.
    if "hypercorn.trio" in sys.modules:
        return HypercornTrioHTTP2 if http2 else HypercornTrio
    return HypercornHTTP2 if http2 else Server
