"""What a server does that is told to stop while streams are open that do not end by themselves."""

from __future__ import annotations

import importlib.util
import time

from .load import Load
from .peer import BESIDE_UVICORN, Peer
from .results import Row, Session
from .servers import serving

STREAMS = 500

#: After so many seconds nobody waits any longer: container runtimes kill after ten.
PATIENCE = 10.0


def run(session: Session) -> None:
    for server in ("uvicorn", *BESIDE_UVICORN):
        if importlib.util.find_spec(server) is None:
            print(f"(without {server}: it is not installed)")
            continue
        title = f"SIGTERM with {STREAMS} endless streams, {server}"
        took = session.row("shutdown", f"{title}: until it has stopped", "s")
        ended = session.row(
            "shutdown", f"{title}: streams that end as they should", "", more_is_better=True
        )

        rows = took, ended

        def measure(peer: Peer, server: str = server, rows: tuple[Row, Row] = rows) -> None:
            took, ended = rows
            with serving(peer, server=server) as running, Load(running.port) as load:
                load.open("/idle", STREAMS)
                time.sleep(0.5)
                began = time.monotonic()
                running.process.terminate()
                well = load.wait_for_ends(PATIENCE)
                while running.process.poll() is None and time.monotonic() < began + PATIENCE:
                    time.sleep(0.01)
                seconds = time.monotonic() - began
            ended.add(peer.name, well)
            if seconds >= PATIENCE:
                why = took.missing[peer.name] = f"hangs (killed after {PATIENCE:g} s)"
                raise RuntimeError(why)  # once is enough
            took.add(peer.name, seconds)

        peers = [peer for peer in session.with_path("idle") if peer.in_python]
        session.rounds(peers, measure, rows)
