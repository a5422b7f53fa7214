"""Events a second of one stream, of each shape, from a source that waits and one that never does.

The servers of all peers run, and all are stopped but one. So each is measured a moment after the
one before: a machine that is shared is now faster, now slower.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .expressions import InexpressibleError, check
from .load import Load
from .machine import Watch
from .peer import Peer
from .results import Row, Session
from .servers import Server, serving
from .shapes import STREAMED, Shape

#: Seconds, and how many rounds.
WARM_UP, SLICE, ROUNDS, QUICK = 0.3, 0.15, 9, 5

SOURCES = {"wait": "one stream that waits between events", "stream": "one stream that never waits"}


@dataclass(frozen=True)
class Where:
    """What a server is started with besides its peer."""

    server: str = "uvicorn"
    variables: dict[str, str] = field(default_factory=dict)


NOWHERE = Where()


def run(session: Session) -> None:
    for path, what in SOURCES.items():
        for shape in STREAMED:
            row = session.row("stream", f"{what}, {shape.name}", "events/s", more_is_better=True)
            able = []
            for peer in session.with_path(path):
                try:
                    check(peer.program, shape)
                except InexpressibleError as exc:
                    row.missing[peer.name] = str(exc)
                else:
                    able.append(peer)
            rates(session, able, row, path, shape)


def rates(
    session: Session,
    peers: Sequence[Peer],
    row: Row,
    path: str,
    shape: Shape,
    where: Callable[[Peer], Where] = lambda _: NOWHERE,
) -> None:
    """Measure a stream of each peer, each on a server of its own."""
    streams: dict[str, tuple[Server, Load]] = {}
    with contextlib.ExitStack() as stack:

        def measure(peer: Peer) -> None:
            if peer.name not in streams:
                opened = streaming(peer, path, shape, where(peer))
                streams[peer.name] = stack.enter_context(opened)
            server, load = streams[peer.name]
            with server.going_on():
                watch = Watch(server.worker)
                rate = load.count(SLICE)
                row.add(peer.name, rate, watch.stop())

        session.rounds(peers, measure, [row], ROUNDS, quick=QUICK)


@contextlib.contextmanager
def streaming(peer: Peer, path: str, shape: Shape, where: Where) -> Iterator[tuple[Server, Load]]:
    """Run a server with an open stream, and stop it for now."""
    with (
        serving(peer, server=where.server, shape=shape, variables=where.variables) as server,
        Load(server.port) as load,
    ):
        with server.going_on():
            load.open(f"/{path}")
            load.count(WARM_UP)
        yield server, load
