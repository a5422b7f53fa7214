"""A map of the package, made from its source: ``python -m tests.rooms`` writes it to CONTRIBUTING.

A room is a module of the package, or a package in it with all its files.
"""

from __future__ import annotations

import ast
from pathlib import Path

from .import_graph import Graph

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- rooms: made by python -m tests.rooms -->\n", "<!-- end of rooms -->\n"

#: What nearly every room imports: it would be all that one sees.
EVERYWHERE = {"errors", "types", "reasons"}


def table(graph: Graph) -> str:
    """The rooms from the ground up: each stands below those that import it."""
    files = {room: [name for name in graph.files if _room(name) == room] for room in _rooms(graph)}
    imports = {
        room: {_room(each.imported) for name in names for each in graph.own[name]} - {room}
        for room, names in files.items()
    }
    lines = ["| room | subject | imports |", "|---|---|---|"]
    done: set[str] = set()
    while len(done) < len(imports):
        room = min(room for room in imports if room not in done and imports[room] <= done)
        done.add(room)
        inside = f"{room}/__init__.py" if len(files[room]) > 1 else files[room][0]
        named = f"`{room}/`" if len(files[room]) > 1 else f"`{inside}`"
        others = ", ".join(sorted(imports[room] - EVERYWHERE))
        lines.append(f"| {named} | {_subject(graph.trees[inside])} | {others} |")
    return "\n".join(lines) + "\n"


def _rooms(graph: Graph) -> set[str]:
    return {_room(name) for name in graph.files}


def _room(name: str) -> str:
    return name.partition("/")[0].removesuffix(".py")


def _subject(tree: ast.Module) -> str:
    """The first sentence of the docstring."""
    first = (ast.get_docstring(tree) or "").partition("\n\n")[0]
    sentence = " ".join(first.split()).partition(". ")[0].removesuffix(".")
    return sentence.replace("``", "`").replace("|", r"\|")


def written() -> str:
    """The map as CONTRIBUTING has it."""
    return PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + table(Graph(ROOT / "sse_asgi")) + END + after, "utf-8")


if __name__ == "__main__":
    main()
