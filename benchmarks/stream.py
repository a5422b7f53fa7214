"""Events a second of one stream: from a source that never waits, and from one that does."""

from __future__ import annotations

from .load import Load
from .machine import Watch
from .peer import Peer
from .results import Session
from .servers import serving

WARM_UP, SECONDS = 0.5, 1.5

#: More than elsewhere: a machine that is shared is now faster, now slower, and here it shows.
ROUNDS = 7


def run(session: Session) -> None:
    rows = {
        "wait": session.row(
            "stream",
            "one stream that waits between events",
            "events/s",
            more_is_better=True,
        ),
        "stream": session.row(
            "stream", "one stream that never waits", "events/s", more_is_better=True
        ),
    }

    def measure(peer: Peer) -> None:
        with serving(peer) as server:
            for path, row in rows.items():
                with Load(server.port) as load:
                    load.open(f"/{path}")
                    load.count(WARM_UP)
                    watch = Watch(server.pid)
                    rate = load.count(SECONDS)
                    row.add(peer.name, rate, watch.stop())

    session.rounds(session.with_path("stream"), measure, rows.values(), ROUNDS)
