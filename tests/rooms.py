"""A map of the package, made from its source: ``python -m tests.rooms`` writes it to CONTRIBUTING.

A room is a module of the package, or a package in it with all its files.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from .import_graph import Graph

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- rooms: made by python -m tests.rooms -->\n", "<!-- end of rooms -->\n"

#: What nearly every room imports: it would be all that one sees.
EVERYWHERE = {"errors", "types", "reasons"}


def table(graph: Graph) -> str:
    """The rooms from the ground up: each stands below those that import it."""
    files: dict[str, list[str]] = {}
    for name in graph.files:
        files.setdefault(_room(name), []).append(name)
    imports = {
        room: {_room(each.imported) for name in names for each in graph.own[name]} - {room}
        for room, names in files.items()
    }

    def height(room: str) -> int:
        return max((height(other) + 1 for other in imports[room]), default=0)

    lines = ["| room | subject | imports |", "|---|---|---|"]
    for room in sorted(files, key=lambda room: (height(room), room)):
        is_package = f"{room}/__init__.py" in graph.trees
        named, first = (f"{room}/", f"{room}/__init__.py") if is_package else (f"{room}.py",) * 2
        others = ", ".join(f"`{other}`" for other in sorted(imports[room] - EVERYWHERE))
        lines.append(f"| `{named}` | {_subject(graph.trees[first])} | {others} |")
    return "\n".join(lines) + "\n"


def _room(name: str) -> str:
    return name.partition("/")[0].removesuffix(".py")


def _subject(tree: ast.Module) -> str:
    """The first sentence of the docstring."""
    first = (ast.get_docstring(tree) or "").partition("\n\n")[0]
    sentence = " ".join(first.split()).partition(". ")[0].removesuffix(".")
    return re.sub(r":\w+:(?=`)", "", sentence).replace("``", "`").replace("|", r"\|")


def written() -> str:
    """The map as CONTRIBUTING has it."""
    return PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + table(Graph(ROOT / "sse_asgi")) + END + after, "utf-8")


if __name__ == "__main__":
    main()
