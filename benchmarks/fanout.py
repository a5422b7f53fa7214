"""The same events for 500 clients, through the hub or what a peer has for it.

Flat out: bursts of a hundred events, of ten, as one read from a broker brings them, and of one,
between which the event loop runs once. Where a peer has nothing of the kind, each client has a
queue.
"""

from __future__ import annotations

import statistics

# benchmarks/redis.py takes them from here.
from .hub import LAST as LAST
from .hub import Clients as Clients
from .load import Load
from .machine import Watch
from .peer import Peer
from .results import Session
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
    at_rate = f"{to}, {RATE:g} events/s"
    p50 = session.row("fanout", f"{at_rate}: p50", "ms")
    p99 = session.row("fanout", f"{at_rate}: p99", "ms")
    busy = session.row("fanout", f"{at_rate}: processor", "% of a core")

    def measure(peer: Peer) -> None:
        for burst, row in bursts.items():
            with serving(peer) as server, Load(server.port) as load:
                load.open("/events", CLIENTS)
                server.publish(burst=burst)
                load.count(WARM_UP)
                watch = Watch(server.pid, server.client_pids)
                rate = load.count(SECONDS)
                row.add(peer.name, rate, watch.stop())
        with serving(peer) as server, Load(server.port) as load:
            load.open("/events", CLIENTS)
            server.publish(rate=RATE)
            load.latencies(WARM_UP)
            watch = Watch(server.pid, server.client_pids)
            took = load.latencies(LISTEN)
            shares = watch.stop()
        came, due = len(took), RATE * LISTEN * CLIENTS
        if came < due * 0.95:
            why = f"saturated: {came / due:.0%} of the events came"
            for row in (p50, p99, busy):
                row.missing.setdefault(peer.name, why)
            return
        p50.add(peer.name, statistics.median(took), shares)
        p99.add(peer.name, statistics.quantiles(took, n=100)[98], shares)
        busy.add(peer.name, shares.server * 100, shares)

    rows = [*bursts.values(), p50, p99, busy]
    session.rounds(session.with_path("events"), measure, rows, count=2)
