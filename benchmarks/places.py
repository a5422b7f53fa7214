"""Where streams are, besides on a server by themselves: as data."""

from __future__ import annotations

from dataclasses import dataclass

#: Through this library's response, in a route of Starlette.
RESPONSE = "EventSourceResponse"
#: A generator that is not async.
SYNC = "sync source"


@dataclass(frozen=True)
class Place:
    """What is around a stream, or another source, or another server."""

    #: ``BENCHMARK_PLACE``.
    name: str
    title: str
    #: Of those that have it; the others are measured as they are.
    programs: tuple[str, ...] = ("raw", "sse_asgi", "sse_starlette")
    #: A module that must be there.
    needs: str = "starlette"
    server: str = "uvicorn"
    #: How many idle streams there are for the memory of one, and how many come and go before.
    idle: int = 1000
    wave: int = 500


PLACES = (
    Place("CORSMiddleware", "under CORSMiddleware"),
    Place("SessionMiddleware", "under SessionMiddleware", needs="itsdangerous"),
    Place("BaseHTTPMiddleware", "under BaseHTTPMiddleware"),
    Place(
        "OpenTelemetryMiddleware",
        "under OpenTelemetryMiddleware",
        needs="opentelemetry.instrumentation.asgi",
    ),
    Place(
        "CompressMiddleware",
        "under starlette-compress, for a client that takes none",
        needs="starlette_compress",
    ),
    Place(RESPONSE, "through EventSourceResponse", ("sse_asgi", "sse_starlette")),
    # No more than the threads that there are for them.
    Place(SYNC, "from a sync source", ("sse_asgi",), idle=150, wave=50),
    Place("granian", "on granian", ("raw", "sse_asgi"), needs="granian", server="granian"),
)
