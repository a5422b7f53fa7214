"""What was measured: samples of each peer, in rows; their medians, spread and ratios."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from .machine import Shares
from .peer import ALL, NotThereError, Peer

#: Beyond these a figure can't be read: the distance of the samples from their median, as a share
#: of it; the processor time that others had, on this machine or by the hypervisor, in cores; how
#: busy the load client may be.
SPREAD, OTHERS, CLIENT = 0.15, 0.2, 0.9

#: What ratios are told to; the second is the first in the same place (in_places.py).
RAW_THERE = "raw_there"
BASES = ("raw", RAW_THERE, "sse_starlette", "nchan")

#: Ratios are told to this one too, if it is measured: the library as another checkout has it.
BEFORE = "before"


@dataclass(frozen=True)
class Sample:
    """A value, and how busy who was meanwhile."""

    value: float
    shares: Shares | None = None


@dataclass
class Row:
    """One thing that was measured, of each peer."""

    benchmark: str
    title: str
    unit: str
    more_is_better: bool = False
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    #: Why there is no figure, by peer.
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, peer: str, value: float, shares: Shares | None = None) -> None:
        self.samples.setdefault(peer, []).append(Sample(value, shares))

    def median(self, peer: str) -> float | None:
        if peer not in self.samples:
            return None
        return statistics.median(sample.value for sample in self.samples[peer])

    def spread(self, peer: str) -> float:
        """How far the samples are from the median, on average, as a share of it."""
        values = [sample.value for sample in self.samples[peer]]
        median = statistics.median(values)
        if not median:
            return 0.0
        return statistics.fmean(abs(value - median) for value in values) / abs(median)

    def share(self, peer: str, who: str) -> float | None:
        shares = [getattr(each.shares, who) for each in self.samples[peer] if each.shares]
        return statistics.median(shares) if shares else None

    def ratio(self, peer: str, base: str) -> float | None:
        """The median of the ratios within a round: the next may find the machine twice as fast."""
        rounds = zip(self.samples.get(peer, ()), self.samples.get(base, ()), strict=False)
        ratios = [ours.value / theirs.value for ours, theirs in rounds if theirs.value]
        return statistics.median(ratios) if ratios else None

    def bases(self) -> tuple[str, ...]:
        """What ratios are told to, measured or not."""
        return (BEFORE, *BASES) if BEFORE in self.samples else BASES

    def doubts(self, peer: str) -> list[str]:
        """Why the figure can't be relied on."""
        doubts = []
        if (spread := self.spread(peer)) > SPREAD:
            doubts.append(f"the samples are ±{spread:.0%} apart: unreadable")
        if (self.share(peer, "others") or 0) > OTHERS:
            doubts.append("the machine had other work to do")
        if (self.share(peer, "stolen") or 0) > OTHERS:
            doubts.append("the hypervisor gave the processor to others")
        if (self.share(peer, "client") or 0) > CLIENT:
            doubts.append("the load client was the bottleneck")
        return doubts

    def as_text(self) -> str:
        better = "more" if self.more_is_better else "less"
        lines = [f"\n{self.title} ({self.unit}; {better} is better)"]
        for peer in self.samples:
            median = self.median(peer)
            assert median is not None
            line = f"  {peer:<16}{number(median):>10} ±{self.spread(peer):<5.0%}"
            for base in self.bases():
                ratio = self.ratio(peer, base)
                line += f" {'' if ratio is None else f'x {base[:9]} {ratio:.2f}':>19}"
            if (server := self.share(peer, "server")) is not None:
                client, others, stolen = (
                    self.share(peer, who) or 0 for who in ("client", "others", "stolen")
                )
                line += f"   server {server:4.0%} client {client:4.0%} others {others:4.0%}"
                line += f" stolen {stolen:.0%}" if stolen >= 0.01 else ""
            lines.append(line)
            lines += [f"    (!) {doubt}" for doubt in self.doubts(peer)]
        lines += [f"  {peer:<16}         - {why}" for peer, why in self.missing.items()]
        return "\n".join(lines)


def number(value: float) -> str:
    """A number with three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


Measure: TypeAlias = Callable[[Peer], None]


@dataclass
class Session:
    """One run: which peers are there, and what has been measured."""

    quick: bool = False
    names: Iterable[str] = tuple(ALL)
    #: This library in another checkout.
    before: Peer | None = None
    #: How many rounds, instead of what each benchmark has.
    count: int | None = None
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    peers: list[Peer] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.names:
            try:
                ALL[name].check()
            except NotThereError as exc:
                self.skipped[name] = str(exc)
                print(f"(without {name}: {exc})")
            else:
                self.peers.append(ALL[name])
        if self.before is not None:  # next to what it is compared with, in time too
            ours = [peer.name for peer in self.peers].index("sse_asgi")
            self.peers.insert(ours + 1, self.before)

    def row(self, benchmark: str, title: str, unit: str, *, more_is_better: bool = False) -> Row:
        row = Row(benchmark, title, unit, more_is_better)
        self.rows.append(row)
        return row

    def rounds(
        self,
        peers: Iterable[Peer],
        measure: Measure,
        rows: Iterable[Row],
        count: int = 3,
        quick: int = 1,
    ) -> None:
        """Measure all peers in turn, so many times (``quick``: in a quick run); print the rows."""
        failed: set[str] = set()
        for _ in range(self.count or (quick if self.quick else count)):
            for peer in peers:
                if peer.name in failed:
                    continue
                try:
                    measure(peer)
                except (OSError, RuntimeError) as exc:
                    failed.add(peer.name)
                    for row in rows:
                        row.missing.setdefault(peer.name, f"failed: {exc}"[:200])
        for row in rows:
            print(row.as_text(), flush=True)

    def with_path(self, path: str) -> list[Peer]:
        return [peer for peer in self.peers if path in peer.paths]


def as_json(session: Session, machine: Mapping[str, object]) -> str:
    versions = {peer.name: peer.version() for peer in session.peers}
    rows: list[dict[str, Any]] = [asdict(row) for row in session.rows]
    content = {
        "machine": {**machine, "quick": session.quick},
        "versions": versions,
        "skipped": session.skipped,
        "rows": rows,
    }
    return json.dumps(content, indent=1) + "\n"


def from_json(text: str) -> tuple[dict[str, Any], list[Row]]:
    content = json.loads(text)
    rows = []
    for fields in content.pop("rows"):
        samples = {
            peer: [
                Sample(each["value"], Shares(**each["shares"]) if each["shares"] else None)
                for each in series
            ]
            for peer, series in fields.pop("samples").items()
        }
        rows.append(Row(**fields, samples=samples))
    return content, rows
