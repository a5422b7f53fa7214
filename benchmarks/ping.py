"""The processor time that pings take."""

from __future__ import annotations

from .idle import CONNECTIONS
from .load import Load
from .machine import Watch
from .peer import Peer
from .results import Session
from .servers import serving

INTERVAL, SECONDS = 1.0, 6.0

#: What the figure is told for.
TOLD = 20.0


def run(session: Session) -> None:
    title = f"{CONNECTIONS:,} idle connections, a ping each second: processor"
    row = session.row("ping", title, f"s in {TOLD:g} s")
    seconds = SECONDS / 2 if session.quick else SECONDS

    def measure(peer: Peer) -> None:
        with serving(peer, ping=INTERVAL) as server, Load(server.port) as load:
            load.open("/idle", CONNECTIONS)
            load.pings(2 * INTERVAL, peer.ping)
            watch = Watch(server.pid)
            pings = load.pings(seconds, peer.ping)
            shares = watch.stop()
        # Some wait a second after each, and so send fewer: told is what all would take.
        came = pings / (CONNECTIONS * seconds / INTERVAL)
        if came < 0.5:
            raise RuntimeError(f"{came:.0%} of the pings came")
        row.add(peer.name, shares.server * TOLD / came, shares)

    peers = [peer for peer in session.with_path("idle") if peer.ping]
    row.missing.update({peer.name: "has no pings" for peer in session.peers if not peer.ping})
    session.rounds(peers, measure, [row], count=2)
