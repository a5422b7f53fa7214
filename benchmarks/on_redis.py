"""The hub on Redis: what it publishes, and how long an event takes to 500 clients.

``raw`` is what one writes by hand: ``XADD`` for each event, and one ``XREAD`` for all clients.
Redis runs on the core of the load client.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from .fanout import CLIENTS, AtRate
from .machine import CLIENT_CORE, SERVER_CORE, on_core
from .peer import ROOT, Before, Peer
from .results import Session

if TYPE_CHECKING:
    from tests.redis.servers import RedisServer

#: How many tasks publish to one topic.
PUBLISHERS = (1, 64)


def run(session: Session) -> None:
    for module in ("coredis", "pytest", "httpx"):
        if importlib.util.find_spec(module) is None:
            print(f"(without the hub on Redis: {module} is not installed)")
            return
    peers = [
        replace(peer, module="raw_redis") if peer.name == "raw" else peer
        for peer in session.peers
        if peer.program in ("raw", "sse_asgi")
    ]
    with redis_server() as server:
        for count in PUBLISHERS:
            publishing(session, peers, server, count)
        at_rate = AtRate(session, "hub-on-redis", f"hub on Redis, to {CLIENTS} clients")
        session.rounds(
            peers,
            lambda peer: at_rate.measure(peer, {"BENCHMARK_REDIS": server.url}),
            at_rate.rows,
        )


@contextlib.contextmanager
def redis_server() -> Iterator[RedisServer]:
    from tests.redis.servers import RedisServer

    with on_core(CLIENT_CORE):
        server = RedisServer()
        server.__enter__()
    try:
        yield server
    finally:
        server.close()


def publishing(session: Session, peers: list[Peer], server: RedisServer, count: int) -> None:
    """Measure how fast so many tasks publish, and what that takes."""
    from .publishers import Shape, measure

    title = f"hub on Redis, {count} publisher{'s' if count > 1 else ''} to one topic"
    rate = session.row("hub-on-redis", f"{title}: published", "events/s", more_is_better=True)
    here = session.row("hub-on-redis", f"{title}: processor", "µs an event")
    redis = session.row("hub-on-redis", f"{title}: processor of Redis", "µs an event")

    def measure_one(peer: Peer) -> None:
        call = "xadd" if peer.name == "raw" else "publish"
        package = peer.folder if isinstance(peer, Before) else ROOT
        with on_core(SERVER_CORE):
            sample = measure(server, package, Shape(title, call, 1, count))
        rate.add(peer.name, sample.rate)
        here.add(peer.name, sample.here)
        redis.add(peer.name, sample.redis)

    session.rounds(peers, measure_one, [rate, here, redis], count=5)
