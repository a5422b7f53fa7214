"""The memory of a connection on which nothing happens."""

from __future__ import annotations

import time

from .load import Load
from .machine import rss
from .peer import Peer
from .results import Session
from .servers import serving

CONNECTIONS = 2000

#: A first wave that comes and goes: what the allocator has then, it keeps.
WAVE = 500


def run(session: Session) -> None:
    row = session.row("idle", f"idle connection, of {CONNECTIONS:,}", "KiB")
    connections = CONNECTIONS // 4 if session.quick else CONNECTIONS

    def measure(peer: Peer) -> None:
        with serving(peer) as server, Load(server.port) as load:
            load.open("/idle", WAVE)
            load.close(WAVE)
            time.sleep(1)
            load.open("/idle", WAVE)  # into what the first have left
            time.sleep(0.5)
            before = rss(server.pid)
            load.open("/idle", connections)
            time.sleep(0.5)
            row.add(peer.name, (rss(server.pid) - before) / connections / 1024)

    session.rounds(session.with_path("idle"), measure, [row])
