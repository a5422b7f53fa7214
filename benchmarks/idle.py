"""The memory of a connection on which nothing happens."""

from __future__ import annotations

import time
from collections.abc import Callable

from .load import Load
from .machine import rss
from .peer import Peer
from .results import Row, Session
from .servers import serving
from .stream import NOWHERE, Where

CONNECTIONS = 2000

#: A first wave that comes and goes: what the allocator has then, it keeps.
WAVE = 500


def run(session: Session) -> None:
    row = session.row("idle", f"idle connection, of {CONNECTIONS:,}", "KiB")
    connections = CONNECTIONS // 4 if session.quick else CONNECTIONS
    session.rounds(session.with_path("idle"), memory(row, connections), [row])


def memory(
    row: Row, connections: int, wave: int = WAVE, where: Callable[[Peer], Where] = lambda _: NOWHERE
) -> Callable[[Peer], None]:
    """Return a measurement of a peer, on a server of its own."""

    def measure(peer: Peer) -> None:
        place = where(peer)
        with (
            serving(peer, server=place.server, variables=place.variables) as server,
            Load(server.port) as load,
        ):
            load.open("/idle", wave)
            load.close(wave)
            time.sleep(1)
            load.open("/idle", wave)  # into what the first have left
            time.sleep(0.5)
            before = rss(server.worker)
            load.open("/idle", connections)
            time.sleep(0.5)
            row.add(peer.name, (rss(server.worker) - before) / connections / 1024)

    return measure
