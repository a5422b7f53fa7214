"""Streams in other places (``places.py``): how many events a second, and the memory of an idle one.

``raw`` is the bare application, wherever the others are; ``raw_there`` is the same application in
the same place, which shows what the place costs by itself.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace

from .idle import memory
from .peer import Peer
from .places import PLACES, Place
from .results import RAW_THERE, Session
from .shapes import USUAL
from .stream import NOWHERE, SOURCES, Where, rates


def run(session: Session) -> None:
    for place in PLACES:
        if not is_there(place.needs):
            print(f"(not {place.title}: {place.needs} is not installed)")
            continue
        peers = peers_in(session, place)

        def where(peer: Peer, place: Place = place) -> Where:
            if peer.name == "raw":
                return NOWHERE
            return Where(place.server, {"BENCHMARK_PLACE": place.name})

        for path, what in SOURCES.items():
            row = session.row("places", f"{what}, {place.title}", "events/s", more_is_better=True)
            rates(session, peers, row, path, USUAL, where)
        count = place.idle // 4 if session.quick else place.idle
        row = session.row("places", f"an idle connection {place.title}, of {place.idle:,}", "KiB")
        session.rounds(peers, memory(row, count, place.wave, where), [row], count=1)


def is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # what it is in
        return False


def peers_in(session: Session, place: Place) -> list[Peer]:
    """Return those that are in a place, and raw as it is."""
    peers = []
    for peer in session.peers:
        if peer.name == "raw":
            peers.append(peer)
            if "raw" in place.programs:
                peers.append(replace(peer, name=RAW_THERE, module="raw"))
        elif peer.program in place.programs:
            peers.append(peer)
    return peers
