"""How many streams a second a server opens: with none open, and with thousands.

With thousands open the garbage collector has much to look at, so that is measured with what it can
be told too: to leave alone what there is, and to do nothing.
"""

from __future__ import annotations

import time

from .load import Load
from .machine import Watch, rss
from .peer import Peer
from .results import Row, Session
from .servers import serving

#: How many streams are open before, and how many are opened then.
OPEN, QUICK_OPEN, OPENED = 10_000, 2000, 1000

#: What the collector is told, and who can be told.
COLLECTOR = {"": "", "freeze": ", after gc.freeze()", "disable": ", after gc.disable()"}
TOLD = ("raw", "sse_asgi")


def run(session: Session) -> None:
    count = QUICK_OPEN if session.quick else OPEN
    none = session.row(
        "connects", "streams opened, none open before", "a second", more_is_better=True
    )
    rows = {
        order: session.row(
            "connects",
            f"streams opened, {OPEN:,} open before{told}",
            "a second",
            more_is_better=True,
        )
        for order, told in COLLECTOR.items()
    }
    kib = session.row("connects", f"idle connection, of {OPEN:,}", "KiB")

    def measure(peer: Peer) -> None:
        orders = COLLECTOR if peer.program in TOLD else [""]
        for order in orders:
            with serving(peer) as server, Load(server.port) as load:
                load.open("/idle", 100)  # what is made once is then there
                if not order:
                    add(none, peer, server.pid, load)
                before, opened = rss(server.pid), len(load)
                load.open("/idle", count - opened)
                if order:
                    load.ask(f"/gc?{order}")
                else:
                    kib.add(peer.name, (rss(server.pid) - before) / (count - opened) / 1024)
                add(rows[order], peer, server.pid, load)

    session.rounds(session.with_path("idle"), measure, [none, *rows.values(), kib], count=2)


def add(row: Row, peer: Peer, pid: int, load: Load) -> None:
    """Open streams, and add how many were opened a second."""
    watch, began = Watch(pid), time.monotonic()
    load.open("/idle", OPENED)
    row.add(peer.name, OPENED / (time.monotonic() - began), watch.stop())
