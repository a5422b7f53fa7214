"""What the reference says of each public name: no parameter, unit or error is left out.

What is documented is read from ``docs/reference.md``, with the members that it names. That each
name of a module's ``__all__`` is there, ``test_docs.py`` tests. The types and defaults are those of
the signatures, which ``pyright --verifytypes`` holds complete.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import pytest

import sse_asgi

from .since import SINCE

ROOT = Path(__file__).parents[1]

DIRECTIVE = re.compile(
    r"^\.\. (?P<kind>auto\w+|currentmodule|module):: (?P<name>[\w.]+)(?P<signature>\(.*\))?\n"
    r"(?P<options>(?:   .*\n)*)",
    re.MULTILINE,
)

#: Units, as docstrings say them.
UNITS = re.compile(r"seconds?|minutes?|bytes|KiB|MiB")


class Documented(NamedTuple):
    """A function, method or class in the reference, whose caller needs to know the parameters."""

    name: str
    function: FunctionType
    #: What is said of it, with what the docstring refers to.
    text: str

    def __repr__(self) -> str:
        return self.name


def documented() -> Iterator[Documented]:
    module = sse_asgi
    for match in DIRECTIVE.finditer((ROOT / "docs/reference.md").read_text("utf-8")):
        kind, name = match["kind"], match["name"]
        if kind in ("module", "automodule", "currentmodule"):
            module = importlib.import_module(name)
        elif kind == "autofunction":
            function = getattr(module, name)
            yield Documented(f"{module.__name__}.{name}", function, said_of(function, module))
        elif kind in ("autoclass", "autoexception"):
            cls = getattr(module, name)
            members = members_of(cls, match["options"])
            yield from functions_of(f"{module.__name__}.{name}", cls, match["signature"], members)


def members_of(cls: type, options: str) -> list[str]:
    found = re.search(r":members:([^:]*)", options)
    if found is None:
        return []
    if named := re.findall(r"\w+", found[1]):
        return named
    excluded = re.search(r":exclude-members:([^:]*)", options)
    without = re.findall(r"\w+", excluded[1]) if excluded else []
    return [n for n in vars(cls) if n[0] != "_" and n not in without and has_doc(cls, n)]


def has_doc(cls: type, name: str) -> bool:
    return bool(inspect.getdoc(inspect.getattr_static(cls, name)))


def functions_of(
    name: str, cls: type, signature: str | None, members: list[str]
) -> Iterator[Documented]:
    init = vars(cls).get("__init__")
    # An empty signature: its users do not make one, or it is said otherwise how.
    is_made = signature != "()" or ":param" in (cls.__doc__ or "")
    if is_made and isinstance(init, FunctionType) and init.__module__ == cls.__module__:
        yield Documented(name, init, said_of(cls, cls))
    for member in members:
        value = inspect.getattr_static(cls, member)
        function = getattr(value, "__func__", value)
        if isinstance(function, FunctionType):
            yield Documented(f"{name}.{member}", function, said_of(getattr(cls, member), cls))


def said_of(thing: Any, owner: Any, *, further: bool = True) -> str:
    """Its documentation, and that of what it refers to: ``Call :meth:`publish` ...``."""
    text = inspect.getdoc(thing) or ""
    if inspect.isclass(thing):
        text += "\n" + "\n".join(fields_of(thing))
    if further:
        for name in re.findall(r":(?:func|meth|class):`~?\.?([\w.]+)`", text):
            last = name.rpartition(".")[2]
            for place in (owner, inspect.getmodule(owner), sse_asgi):
                if (found := getattr(place, last, None)) is not None:
                    text += "\n" + said_of(found, owner, further=False)
                    break
    return text


def fields_of(cls: type) -> Iterator[str]:
    """The fields of a class that are documented, and what is said of each."""
    name = r"^    (\w+): .*\n"
    text = inspect.getsource(cls)
    for comments, field in re.findall(rf"((?:^    #:.*\n)+){name}", text, re.MULTILINE):
        yield f"{field}: {comments}"
    for field, docstring in re.findall(rf'{name}(    """[^"]+""")', text, re.MULTILINE):
        yield f"{field}: {docstring}"


ALL = list(documented())
each = pytest.mark.parametrize("it", ALL, ids=repr)


def parameters(it: Documented) -> list[inspect.Parameter]:
    hidden = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [
        parameter
        for name, parameter in inspect.signature(it.function).parameters.items()
        if name not in ("self", "cls") and name[0] != "_" and parameter.kind not in hidden
    ]


def test_there_is_much() -> None:
    names = {it.name for it in ALL}
    assert {
        "sse_asgi.sse_app", "sse_asgi.Limit", "sse_asgi.hub.Hub.publish", "sse_asgi.hub.Log.read",
        "sse_asgi.hub.redis.RedisLog", "sse_asgi.testing.connect", "sse_asgi.client.EventSource",
    } <= names  # fmt: skip


@each
def test_each_parameter_is_described(it: Documented) -> None:
    """As ``:param name:``, as a field of a class, or by "as are ``name``" beside another."""
    fields = set(re.findall(r"^(?::param )?(\w+):", it.text, re.MULTILINE))
    for beside in re.findall(r"\bas are((?:,?(?: and)?\s+``\w+``)+)", it.text):
        fields.update(re.findall(r"\w+", beside))
    assert [p.name for p in parameters(it) if p.name not in fields] == []


@each
def test_each_time_has_a_unit(it: Documented) -> None:
    times = [p.name for p in parameters(it) if re.search(r"\bfloat\b", str(p.annotation))]
    assert not times or UNITS.search(it.text), times


@each
def test_each_error_that_it_raises_is_named(it: Documented) -> None:
    """Those that are raised in its own lines."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(it.function)))
    except OSError:  # made by a dataclass
        return
    raised = {
        ast.unparse(node.exc.func).rpartition(".")[2]
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    }
    said = " ".join(re.findall(r":raises ([^:]+):", it.text))
    assert not {name for name in raised if name[0].isupper() and name not in said}


# Since when.

MODULES = sorted({module for names in SINCE.values() for module in names})


@pytest.mark.parametrize("module", MODULES)
def test_each_name_is_there_since_a_version(module: str) -> None:
    """A name that goes is a break; one that comes says ``versionadded`` in its documentation."""
    known = [name for names in SINCE.values() for name in names.get(module, "").split()]
    assert sorted(known) == sorted(importlib.import_module(module).__all__), "say it in since.py"


def test_what_came_later_says_so() -> None:
    first, *later = SINCE
    reference = (ROOT / "docs/reference.md").read_text("utf-8")
    assert f"since {first}," in reference
    for version in later:
        for module, names in SINCE[version].items():
            for name in names.split():
                doc = getattr(importlib.import_module(module), name).__doc__ or ""
                assert f".. versionadded:: {version}" in doc, name
