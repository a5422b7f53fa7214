"""Read from the source of a package which file imports which. Nothing is imported to find out.

A file is named by its path in the package: ``hub/log.py``, ``hub/__init__.py``. Every import
counts, also one within a function, and one for type checkers only.
"""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeAlias


class When(Enum):
    """When an import happens."""

    LOADING = "when the file is loaded"
    CALLED = "when a function is called"
    CHECKING = "for type checkers only"


class Import(NamedTuple):
    """One import of a file."""

    importer: str
    #: A file of the package; or, of another package, the first part of its name.
    imported: str
    when: When
    line: int


class Graph:
    """The files of a package, and the arrows between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
        self.trees = {name: ast.parse((folder / name).read_text("utf-8")) for name in self.files}
        #: What each file imports of the package.
        self.own: dict[str, list[Import]] = {name: [] for name in self.files}
        #: What each file imports of others, the standard library included.
        self.foreign: dict[str, list[Import]] = {name: [] for name in self.files}
        #: What each file imports of the package that is not there.
        self.lost: dict[str, list[Import]] = {name: [] for name in self.files}
        for name in self.files:
            for node, when in _import_statements(self.trees[name], When.LOADING):
                self._add(name, node, when)

    def _add(self, name: str, node: _Statement, when: When) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self._add_module(name, alias.name.split("."), when, node.lineno)
            return
        module = node.module.split(".") if node.module else []
        if node.level:  # as many dots: one is the package of the file
            package = [self.folder.name, *PurePosixPath(name).parts[:-1]]
            if node.level > len(package):
                outside = "." * node.level + ".".join(module)
                self.lost[name].append(Import(name, outside, when, node.lineno))
                return
            module = [*package[: len(package) + 1 - node.level], *module]
        for alias in node.names:
            submodule = [*module, alias.name]
            found = module[0] == self.folder.name and self._file(submodule[1:])
            self._add_module(name, submodule if found else module, when, node.lineno)

    def _add_module(self, name: str, module: list[str], when: When, line: int) -> None:
        if module[0] != self.folder.name:
            imports, what = self.foreign, module[0]
        elif file := self._file(module[1:]):
            imports, what = self.own, file
        else:
            imports, what = self.lost, ".".join(module)
        new = Import(name, what, when, line)
        if new not in imports[name]:  # several names of one statement
            imports[name].append(new)

    def _file(self, module: list[str]) -> str | None:
        """The file of a module, whose name is given without that of the package."""
        path = "/".join(module)
        candidates = (f"{path}/__init__.py", f"{path}.py") if module else ("__init__.py",)
        return next((each for each in candidates if each in self.own), None)

    def circle(self, name: str) -> list[str]:
        """Return the shortest way from a file back to itself; none is empty."""
        return self._way(name, {name}, lambda file: (each.imported for each in self.own[file]))

    def way_to(self, name: str, files: set[str]) -> list[str]:
        """Return the shortest way from a file to what it needs when it runs; none is empty.

        What is imported from within a package loads the package's ``__init__``, which counts here.
        That of the whole package does not: it is always loaded.
        """

        def loaded(file: str) -> Iterator[str]:
            for each in self.own[file]:
                if each.when is not When.CHECKING:
                    yield each.imported
                    for folder in list(PurePosixPath(each.imported).parents)[:-1]:
                        if (package := f"{folder}/__init__.py") in self.own:
                            yield package

        return self._way(name, files, loaded)

    def _way(self, name: str, files: set[str], following: _Following) -> list[str]:
        ways = deque([[name]])
        seen: set[str] = set()
        while ways:
            way = ways.popleft()
            for file in following(way[-1]):
                if file in files:
                    return [*way, file]
                if file not in seen:
                    seen.add(file)
                    ways.append([*way, file])
        return []


class Sizes(NamedTuple):
    """How large things are that one file defines, by their qualified names."""

    lines: int
    #: The lines of each function, with its docstring and what is defined in it.
    functions: dict[str, int]
    #: The names of the attributes of each class's instances.
    attributes: dict[str, set[str]]


def sizes(source: str) -> Sizes:
    """Measure the source of a file."""
    found = Sizes(len(source.splitlines()), {}, {})
    _measure(ast.parse(source), "", found)
    return found


def _measure(node: ast.AST, prefix: str, found: Sizes) -> None:
    for child in ast.iter_child_nodes(node):
        inside = prefix
        if isinstance(child, _FUNCTIONS):
            assert child.end_lineno is not None
            lines = child.end_lineno - child.lineno + 1
            name = prefix + child.name  # which a property's setter has, too
            found.functions[name] = max(lines, found.functions.get(name, 0))
            inside = f"{prefix}{child.name}."
        elif isinstance(child, ast.ClassDef):
            found.attributes[prefix + child.name] = _attributes(child)
            inside = f"{prefix}{child.name}."
        _measure(child, inside, found)


def _attributes(cls: ast.ClassDef) -> set[str]:
    """The ``__slots__``; where there are none, the fields, and what ``__init__`` gives to self."""
    names: set[str] = set()
    for node in cls.body:
        if isinstance(node, ast.Assign):
            if any(isinstance(to, ast.Name) and to.id == "__slots__" for to in node.targets):
                slots = node.value.keys if isinstance(node.value, ast.Dict) else [node.value]
                return {text for each in slots if each for text in _texts(each)} - {"__weakref__"}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if "ClassVar" not in ast.unparse(node.annotation):
                names.add(node.target.id)
        elif isinstance(node, _FUNCTIONS) and node.name == "__init__":
            names |= {
                target.attr
                for target in ast.walk(node)
                if isinstance(target, ast.Attribute)
                and isinstance(target.ctx, ast.Store)
                and isinstance(target.value, ast.Name)
                and target.value.id == "self"
            }
    return names


def _texts(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def _import_statements(node: ast.AST, when: When) -> Iterator[tuple[_Statement, When]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, when
    if when is When.LOADING and isinstance(node, _FUNCTIONS):
        when = When.CALLED
    checking: list[ast.stmt] = []
    if isinstance(node, ast.If) and ast.unparse(node.test) in _TYPE_CHECKING:
        checking = node.body
    for child in ast.iter_child_nodes(node):
        yield from _import_statements(child, When.CHECKING if child in checking else when)


_TYPE_CHECKING = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_Statement: TypeAlias = ast.Import | ast.ImportFrom
_Following: TypeAlias = Callable[[str], Iterable[str]]
