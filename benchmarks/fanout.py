"""The same events for 500 clients, through the hub or what a peer has for it.

Flat out: bursts of a hundred events, of ten, as one read from a broker brings them, and of one,
between which the event loop runs once. Where a peer has nothing of the kind, each client has a
queue.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from types import MappingProxyType

# benchmarks/redis.py takes them from here.
from .hub import LAST as LAST
from .hub import Clients as Clients
from .load import Load
from .machine import Watch
from .peer import Peer
from .results import Row, Session
from .servers import serving

CLIENTS = 500
WARM_UP, SECONDS = 0.7, 1.5

#: Events a second, and for how long.
RATE, LISTEN = 20.0, 5.0


def run(session: Session) -> None:
    to = f"fan-out to {CLIENTS} clients"
    bursts = {
        100: session.row(
            "fanout", f"{to}, flat out, a hundred at a time", "deliveries/s", more_is_better=True
        ),
        10: session.row(
            "fanout", f"{to}, flat out, ten at a time", "deliveries/s", more_is_better=True
        ),
        1: session.row(
            "fanout", f"{to}, flat out, one at a time", "deliveries/s", more_is_better=True
        ),
    }
    at_rate = AtRate(session, "fanout", to)

    def measure(peer: Peer) -> None:
        for burst, row in bursts.items():
            with serving(peer) as server, Load(server.port) as load:
                load.open("/events", CLIENTS)
                server.publish(burst=burst)
                load.count(WARM_UP)
                watch = Watch(server.pid, server.client_pids)
                rate = load.count(SECONDS)
                row.add(peer.name, rate, watch.stop())
        at_rate.measure(peer)

    rows = [*bursts.values(), *at_rate.rows]
    session.rounds(session.with_path("events"), measure, rows, count=2)


class AtRate:
    """The rows of events that come at a rate: latency, and how busy the server is."""

    def __init__(self, session: Session, benchmark: str, to: str) -> None:
        title = f"{to}, {RATE:g} events/s"
        self.p50 = session.row(benchmark, f"{title}: p50", "ms")
        self.p99 = session.row(benchmark, f"{title}: p99", "ms")
        self.busy = session.row(benchmark, f"{title}: processor", "% of a core")

    @property
    def rows(self) -> tuple[Row, Row, Row]:
        return self.p50, self.p99, self.busy

    def measure(self, peer: Peer, variables: Mapping[str, str] = MappingProxyType({})) -> None:
        """Measure a peer, with these in the environment of its server."""
        with serving(peer, variables=variables) as server, Load(server.port) as load:
            load.open("/events", CLIENTS)
            server.publish(rate=RATE)
            load.latencies(WARM_UP)
            watch = Watch(server.pid, server.client_pids)
            took = load.latencies(LISTEN)
            shares = watch.stop()
        came, due = len(took), RATE * LISTEN * CLIENTS
        if came < due * 0.95:
            why = f"saturated: {came / due:.0%} of the events came"
            for row in self.rows:
                row.missing.setdefault(peer.name, why)
            return
        self.p50.add(peer.name, statistics.median(took), shares)
        self.p99.add(peer.name, statistics.quantiles(took, n=100)[98], shares)
        self.busy.add(peer.name, shares.server * 100, shares)
