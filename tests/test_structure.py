"""The imports, as DESIGN has them, and the public names, held against reality."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sse_asgi

PACKAGE = Path(sse_asgi.__file__).parent

#: What each module may import of the package, from the ground up.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "runtime": {"runtime"},
    "event": {"errors", "types"},
    "encoder": {"errors", "types", "event"},
    "decoder": {"errors"},
    "request": {"types"},
    "servers": {"types", "runtime", "servers"},
    "signals": {"runtime", "servers"},
    "shutdown": {"runtime", "signals"},
    "source": {"errors", "types", "runtime"},
    "reasons": set(),
    "options": {"types", "event", "encoder", "shutdown", "reasons"},
    "supervisor": {
        "errors", "types", "runtime", "encoder", "source", "shutdown",
        "reasons", "options", "servers", "supervisor",
    },
    "answers": {"types", "errors", "options"},
    "compat": {"errors", "types", "event", "encoder"},
    "app": {"errors", "types", "answers", "options", "request", "source", "supervisor"},
    # It makes frames, and nothing that serves them.
    "hub": {"errors", "types", "runtime", "encoder", "hub"},
    # An adapter translates; it imports one framework, and never the hub.
    "starlette": {
        "errors", "types", "answers", "compat", "runtime", "source", "shutdown", "reasons",
        "options",
        "supervisor", "app",
    },
    "fastapi": {"types", "event", "starlette"},
    # The hub for type checkers: what it tests is what it is given.
    "testing": {"types", "errors", "decoder", "hub", "runtime", "testing"},
    "__init__": {
        "app", "errors", "event", "options", "request", "shutdown", "source", "reasons",
    },
    # The demo is a user: the public names of the package and nothing else.
    "demo": {"", "demo", "hub", "types"},
    "__main__": {"demo"},
}  # fmt: skip


def module_name(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The modules of the package that ``path`` imports, for type checkers too."""
    tree = ast.parse(path.read_text())
    inside = len(path.relative_to(PACKAGE).parts) - 1
    found: set[str] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            if node.level == inside + 1:
                names = [node.module or "."] if node.module else [a.name for a in node.names]
            elif node.level:
                names = [module_name(path)]
            elif node.module and node.module.split(".")[0] == "sse_asgi":
                names = [node.module.removeprefix("sse_asgi").removeprefix(".")]
        elif isinstance(node, ast.Import):
            names = [
                alias.name.removeprefix("sse_asgi").removeprefix(".")
                for alias in node.names
                if alias.name.split(".")[0] == "sse_asgi"
            ]
        found |= {name.split(".")[0] for name in names}
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_go_one_way(path: Path) -> None:
    name = module_name(path)
    assert name in MAY_IMPORT, f"{name} is new: say here what it may import"
    for imported in imports(path):
        assert imported in MAY_IMPORT[name], f"{path.name} imports {imported}"


def test_the_check_of_imports_sees_them() -> None:
    assert "encoder" in imports(PACKAGE / "supervisor" / "stream.py")
    assert "options" in imports(PACKAGE / "supervisor" / "stream.py")  # for type checkers
    assert "demo" in imports(PACKAGE / "__main__.py")
    assert {"", "demo"} <= imports(PACKAGE / "demo" / "app.py")


def test_the_core_needs_anyio_alone() -> None:
    """Importing the package loads nothing else that is not in the standard library."""
    code = (
        "import sys, anyio; before = set(sys.modules); "
        "import sse_asgi, sse_asgi.hub, sse_asgi.testing; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    foreign = set(run.stdout.split()) - set(sys.stdlib_module_names) - {"sse_asgi"}
    assert foreign <= {"anyio", "sniffio", "typing_extensions"}


MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages([str(PACKAGE)], "sse_asgi.")
    if not name.startswith(("sse_asgi.demo", "sse_asgi.__main__"))
]


@pytest.mark.parametrize("name", ["sse_asgi", *MODULES])
def test_all_lists_what_is_public(name: str) -> None:
    module = importlib.import_module(name)
    public = getattr(module, "__all__", [])
    assert len(public) == len(set(public))
    for exported in public:
        assert hasattr(module, exported)


def test_public_names_are_documented() -> None:
    for name in sse_asgi.__all__:
        assert getattr(sse_asgi, name).__doc__, name


@pytest.mark.parametrize("name", ["anyio", "starlette"])
def test_the_oldest_that_is_allowed_is_tested(name: str) -> None:
    pyproject, tox = ((PACKAGE.parent / name).read_text() for name in ("pyproject.toml", "tox.ini"))
    (allowed,) = re.findall(rf'^\w+ = \["{name}>=([\d.]+)"\]', pyproject, re.MULTILINE)
    (tested,) = re.findall(rf"oldest: {name}(?:\[\w+\])?==([\d.]+?)(?:\.0)?$", tox, re.MULTILINE)
    assert tested == allowed
