"""The table and the pictures of the documentation, from what ``--json`` has written."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from .peer import ROOT
from .results import BASES, BEFORE, RAW_THERE, Row, from_json, number

PAGE = ROOT / "docs" / "explanation" / "performance.md"
IMAGES = PAGE.parent / "images"
BEGIN, END = "<!-- figures -->", "<!-- end of the figures -->"

#: What there is a picture of: the beginning of the title, and the name of the file.
PICTURES = {
    "one stream that never waits, a dict (id, event, data)": "stream",
    "fan-out to 500 clients, flat out, ten": "fanout",
    "fan-out to 500 clients, 20 events/s: processor": "rate",
    "idle connection, of 2,000": "idle",
    "2,000 idle connections, a ping": "ping",
}

#: What a peer did in place of a figure. Other reasons say what it does not have.
FAILURES = ("failed", "hangs", "saturated")

OURS = "sse_asgi"
BAR, HEIGHT, LEFT, RIGHT = 360, 22, 130, 90


def main(files: list[Path]) -> None:
    rows: list[Row] = []
    content: dict[str, Any] = {}
    for file in files:
        content, more = from_json(file.read_text())
        rows += more
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    IMAGES.mkdir(exist_ok=True)
    parts = [summary(content), ratios(rows), *map(picture, rows), medians(rows, content)]
    text = "\n\n".join(part for part in parts if part)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def summary(content: dict[str, Any]) -> str:
    machine = content["machine"]
    versions = content["versions"].items()
    peers = ", ".join(f"{name} {version}" for name, version in versions if version)
    return (
        f"Measured on {machine['date']}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['python']}. {peers}."
    )


def ratios(rows: list[Row]) -> str:
    """Return the table of our results, with their ratios to what one would choose otherwise."""
    bases = [base for base in (BEFORE, *BASES) if any(base in row.samples for row in rows)]
    heads = " | ".join(f"x {base.replace('_', '-')}" for base in bases)
    lines = [
        f"| ↑ more is better, ↓ less | {OURS} | {heads} |",
        "|---|---:" + "|---:" * len(bases) + "|",
    ]
    for row in rows:
        if row.median(OURS) is None:
            continue
        cells = [head(row), cell(row, OURS)]
        for base in bases:
            ratio = row.ratio(OURS, base)
            cells.append("" if ratio is None else f"{ratio:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def medians(rows: list[Row], content: dict[str, Any]) -> str:
    """The figures of all."""
    peers = list(content["versions"])
    if any(RAW_THERE in row.samples for row in rows):
        peers.insert(peers.index("raw") + 1, RAW_THERE)
    lines = [
        f"| median | {' | '.join(peers)} |",
        "|---" + "|---:" * len(peers) + "|",
    ]
    lines += [f"| {head(row)} | {' | '.join(cell(row, p) for p in peers)} |" for row in rows]
    text = "All of them (`±` where the samples are more than 15 % from their median):\n\n"
    return text + "\n".join(lines)


def title(row: Row) -> str:
    return f"{row.title}, {row.unit}" if row.unit else row.title


def head(row: Row) -> str:
    """Return the title for a table, with an arrow that says which way is better."""
    return f"{title(row)} {'↑' if row.more_is_better else '↓'}"


def cell(row: Row, peer: str) -> str:
    median = row.median(peer)
    if median is None:
        why = row.missing.get(peer, "").partition(" ")[0].rstrip(":")
        return why if why in FAILURES else "-"
    doubtful = " ±" if row.spread(peer) > 0.15 else ""
    return number(median) + doubtful


def picture(row: Row) -> str:
    """A row as bars, in a file; what refers to it."""
    name = next((name for begin, name in PICTURES.items() if row.title.startswith(begin)), None)
    if name is None:
        return ""
    better = "more" if row.more_is_better else "less"
    caption = f"{title(row)} ({better} is better)"
    (IMAGES / f"{name}.svg").write_text(bars(row, caption))
    return f"![{caption}](images/{name}.svg)"


def bars(row: Row, caption: str) -> str:
    medians = {peer: row.median(peer) or 0.0 for peer in row.samples}
    most = max(medians.values())
    height = HEIGHT * (len(medians) + 1) + 8
    # Grey text is read on a light page and on a dark one.
    lines = [
        (
            '<svg xmlns="http://www.w3.org/2000/svg" '
            f'width="{LEFT + BAR + RIGHT}" height="{height}" '
            'font-family="sans-serif" font-size="13" fill="#808080">'
        ),
        f'<text x="4" y="16" font-weight="bold">{escape(caption)}</text>',
    ]
    for number_of, (peer, median) in enumerate(medians.items(), start=1):
        y = number_of * HEIGHT + 4
        width = max(median / most * BAR, 1)
        colour = "#2a7ae2" if peer == OURS else "#a0a0a0"
        lines += [
            f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(peer)}</text>',
            (
                f'<rect x="{LEFT}" y="{y + 2}" width="{width:.0f}" height="{HEIGHT - 6}" '
                f'fill="{colour}"/>'
            ),
            f'<text x="{LEFT + width + 6:.0f}" y="{y + 15}">{number(median)}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"
