"""The layout, as DESIGN has it, and the public names, held against reality.

What is said here of the files of the package is read from their source (``import_graph.py``).
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import sse_asgi

from . import rooms
from .import_graph import Graph, Import, When, sizes
from .imported import imported_by_the_package

PACKAGE = Path(sse_asgi.__file__).parent

GRAPH = Graph(PACKAGE)

#: Names that everybody uses.
NAMES = {"errors", "types", "reasons"}

#: The rooms, from the ground up, and what each may import of the others. A room is a module of the
#: package, or a package in it with all its files.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "reasons": set(),
    # What is asked of an event loop.
    "runtime": NAMES,
    # The format. The decoder shares nothing with the encoder, so that it can check it.
    "event": NAMES,
    "encoder": NAMES | {"event"},
    "models": set(),
    "decoder": NAMES | {"models"},
    "relaying": NAMES,
    "notes": set(),
    "body": NAMES,
    "request": NAMES | {"body"},
    "limits": NAMES | {"request"},
    # What metrics and traces are made of.
    "observer": NAMES,
    "tally": NAMES | {"observer"},
    "metrics": set(),
    "prometheus": NAMES | {"metrics", "observer", "tally"},
    "opentelemetry": NAMES | {"metrics", "observer", "tally"},
    # What is asked of a server, and how a process learns that it is stopping.
    "servers": NAMES | {"runtime"},
    "signals": NAMES | {"runtime", "servers"},
    "shutdown": NAMES | {"runtime", "servers", "signals"},
    "threads": NAMES | {"runtime"},
    "source": NAMES | {"threads"},
    "opening": NAMES | {"source"},
    "compression": NAMES,
    "options": NAMES | {
        "event", "encoder", "body", "limits", "observer", "shutdown", "compression",
    },
    # The life of one stream.
    "supervisor": NAMES | {
        "runtime", "encoder", "notes", "observer", "servers", "shutdown", "source", "opening",
        "options", "compression",
    },
    "answers": NAMES | {"options", "request", "runtime", "servers", "shutdown", "supervisor"},
    "factory": NAMES,
    "app": NAMES | {
        "factory", "request", "source", "opening", "observer", "options", "supervisor", "answers",
    },
    # Adapters translate.
    "compat": NAMES | {"event", "encoder"},
    "starlette": NAMES | {
        "request", "limits", "observer", "runtime", "shutdown", "source", "opening", "options",
        "supervisor", "answers", "compat", "compression",
    },
    "fastapi": NAMES | {"event", "request", "starlette"},
    # It makes frames, and nothing that serves them.
    "hub": NAMES | {"runtime", "event", "encoder", "decoder", "observer", "source"},
    # The other end: it shares nothing with a server.
    "client": NAMES | {"decoder"},
    # The hub for type checkers: what is tested is what it is given.
    "testing": NAMES | {"runtime", "decoder", "hub"},
    "__init__": NAMES | {
        "event", "relaying", "request", "limits", "observer", "tally", "shutdown", "threads",
        "options", "app",
    },
    # The demo is a user: the public names of the package, and nothing else.
    "demo": {"__init__", "hub", "types"},
    # Commands.
    "command_line": set(),
    "tail": NAMES | {"command_line", "decoder", "client"},
    "__main__": {"command_line", "demo", "tail", "types"},
}  # fmt: skip

#: The files of some rooms, from the ground up: each may import those of the lines before its own.
#: A package stands for all its files. The ``__init__`` of the room stands above them all.
ORDER: dict[str, list[set[str]]] = {
    "runtime": [{"base"}, {"asyncio", "trio", "detached"}, {"native"}],
    "servers": [
        {"sockets"},
        {"connection"},
        {"base"},
        {"running"},
        {"uvicorn", "hypercorn", "granian", "daphne", "unread"},
        {"connections"},
    ],
    "supervisor": [
        {"life", "incoming", "log_line", "pings"},
        {"deadlines"},
        {"sender", "recheck"},
        {"observed"},
        {"response"},
        {"pump"},
        {"interruption"},
        {"watchdog"},
        {"feed"},
        {"ending"},
        {"stream"},
    ],
    "hub": [
        {"positions"},
        {"names"},
        {"infos"},
        {"body"},
        {"each"},
        {"arguments"},
        {"affinity"},
        {"log"},
        {"place_log", "presence_log", "remote_log", "run_log"},
        {"window", "many"},
        {"memory_presence"},
        {"memory"},
        {"channel"},
        {"asking", "gap", "places", "rest"},
        {"beginning"},
        {"presence_events"},
        {"presence"},
        {"registry"},
        {"subscription"},
        {"run"},
        {"runs"},
        {"observed"},
        {"work"},
        {"all_nodes", "from_threads"},
        {"hub"},
        {"health"},
        {"redis"},
    ],
    "client": [
        {"errors", "states", "types", "backoff", "answer", "http2", "handshake", "unwind"},
        {"auth", "gaps"},
        {"requests"},
        {"link"},
        {"source"},
    ],
    "tail": [
        {"options", "show"},
        {"bench"},
        {"command"},
    ],
}

ADAPTERS = {"compat", "starlette", "fastapi"}

#: What no file of a room imports, nor needs by way of others.
NEVER: dict[str, set[str]] = {
    "hub": {"supervisor", "answers", "app", *ADAPTERS},
    "decoder": {"encoder"},
    "client": {"encoder", "runtime", "servers", "supervisor", "app", "hub", *ADAPTERS},
    "testing": {"encoder"},
    **{adapter: {"hub"} for adapter in ADAPTERS},
}

#: What the files of the core may import beside the standard library, when they are loaded ...
CORE = {"anyio"}
#: ... and what type checkers bring themselves.
CHECKERS = {"typing_extensions"}

#: What others may, beside the core's: files, or packages with all their files. Nothing of the core
#: loads them by itself.
EXTRAS: dict[str, set[str]] = {
    "runtime/trio.py": {"trio"},
    "starlette.py": {"starlette"},
    "fastapi.py": {"fastapi", "pydantic", "pydantic_core"},  # one framework: its models
    "hub/redis": {"coredis"},
    "prometheus.py": {"prometheus_client"},
    "opentelemetry.py": {"opentelemetry"},
    "demo": {"psutil"},
}

#: What a room may import within a function, or for type checkers: it is there if it is needed.
LATER: dict[str, set[str]] = {
    "runtime": {"trio"},
    "servers": {"trio", "uvicorn", "hypercorn", "granian", "twisted", "daphne"},
    "event": {"msgspec"},
    "models": {"msgspec", "pydantic"},
    "client": {"httpx2"},
    "tail": {"httpx2"},
    "testing": {"httpx", "httpx2"},
    "__main__": {"uvicorn"},
}

#: The rooms whose sizes are bounded, and the most lines of a file, attributes of a class and lines
#: of a function.
BOUNDED = ("runtime", "servers", "supervisor", "hub", "client", "tail")
LINES, ATTRIBUTES, FUNCTION = 400, 20, 60

#: Functions that may be longer, and why.
LONGER: dict[str, int] = {
    # The hot loop stays one loop, with its objects in locals: a call costs 5 % of a joined event.
    "supervisor/pump.py:Pump.run": 100,
}

files = pytest.mark.parametrize("name", GRAPH.files)
bounded = pytest.mark.parametrize(
    "name", [name for name in GRAPH.files if name.startswith(tuple(f"{r}/" for r in BOUNDED))]
)


def room_of(name: str) -> str:
    return name.partition("/")[0].removesuffix(".py")


def place_of(name: str) -> str:
    """Where a file stands in the order of its room: ``log`` for ``hub/log.py``."""
    return name.split("/")[1].removesuffix(".py")


def extras_of(name: str) -> set[str] | None:
    """What a file may load that the core does not; ``None`` for a file of the core."""
    return next(
        (extras for of, extras in EXTRAS.items() if name == of or name.startswith(f"{of}/")), None
    )


def told(imports: list[Import]) -> str:
    return "; ".join(
        f"{each.importer}:{each.line} imports {each.imported} {each.when.value}" for each in imports
    )


@files
def test_what_is_imported_is_there(name: str) -> None:
    assert not (lost := GRAPH.lost[name]), told(lost)


@files
def test_there_is_no_circle(name: str) -> None:
    """Not for type checkers either."""
    assert not (circle := GRAPH.circle(name)), " -> ".join(circle)


@files
def test_imports_go_one_way(name: str) -> None:
    room = room_of(name)
    assert room in MAY_IMPORT, f"{room} is new: say in MAY_IMPORT what it may import"
    allowed = MAY_IMPORT[room] | {room}
    assert not (wrong := [e for e in GRAPH.own[name] if room_of(e.imported) not in allowed]), (
        f"{told(wrong)}; {room} may import {', '.join(sorted(MAY_IMPORT[room])) or 'nothing'}"
    )


def test_the_map_of_the_rooms_is_up_to_date() -> None:
    assert rooms.written() == rooms.table(GRAPH), "run python -m tests.rooms"


def test_a_room_stands_above_all_that_it_imports() -> None:
    below: set[str] = set()
    for room, imported in MAY_IMPORT.items():
        assert imported <= below, f"{room} stands below {', '.join(sorted(imported - below))}"
        below.add(room)


@pytest.mark.parametrize(
    "name", [name for name in GRAPH.files if "/" in name and room_of(name) in ORDER]
)
def test_imports_within_a_room_go_one_way(name: str) -> None:
    room, place = room_of(name), place_of(name)
    lines = [*ORDER[room], {"__init__"}]
    assert place in set().union(*lines), f"{name} is new: say in ORDER where it stands"
    (height,) = (number for number, line in enumerate(lines) if place in line)
    below = {place}.union(*lines[:height])
    wrong = [
        each
        for each in GRAPH.own[name]
        if each.imported.startswith(f"{room}/") and place_of(each.imported) not in below
    ]
    assert not wrong, f"{told(wrong)}; {place} stands above {', '.join(sorted(below - {place}))}"


NAMED = [
    *(room for room in MAY_IMPORT if room not in ORDER),
    *(f"{room}/{place}" for room, lines in ORDER.items() for line in lines for place in line),
    *EXTRAS,
    *LONGER,
]


@pytest.mark.parametrize("name", sorted(NAMED))
def test_the_list_names_what_is_there(name: str) -> None:
    """What is named before it is written, or after it has gone, fails here and nowhere else."""
    file, _, function = name.partition(":")
    found = [each for each in (file, f"{file}.py", f"{file}/__init__.py") if each in GRAPH.files]
    assert found, f"there is no {name}: take it out of the list, or write it"
    if function:
        assert function in sizes((PACKAGE / file).read_text()).functions, f"there is no {name}"


@files
def test_what_is_kept_apart(name: str) -> None:
    never = NEVER.get(room_of(name), set())
    assert not (wrong := [e for e in GRAPH.own[name] if room_of(e.imported) in never]), told(wrong)
    forbidden = {file for file in GRAPH.files if room_of(file) in never}
    assert not (way := GRAPH.way_to(name, forbidden)), " -> ".join(way)


@files
def test_an_adapter_imports_one_framework_and_the_core_none(name: str) -> None:
    extras = extras_of(name)
    loaded = CORE | (extras or set()) | sys.stdlib_module_names
    allowed = {
        When.LOADING: loaded,
        When.CALLED: loaded | LATER.get(room_of(name), set()),
        When.CHECKING: loaded | LATER.get(room_of(name), set()) | CHECKERS,
    }
    wrong = [each for each in GRAPH.foreign[name] if each.imported not in allowed[each.when]]
    assert not wrong, told(wrong)
    if not extras:  # what needs an extra is loaded by those that have it, or on demand
        wrong = [
            each
            for each in GRAPH.own[name]
            if each.when is When.LOADING and extras_of(each.imported)
        ]
        assert not wrong, told(wrong)


@bounded
def test_a_file_is_read_in_one_sitting(name: str) -> None:
    assert (lines := sizes((PACKAGE / name).read_text()).lines) <= LINES, f"{name}: {lines} lines"


@bounded
def test_a_class_has_one_subject(name: str) -> None:
    for cls, names in sizes((PACKAGE / name).read_text()).attributes.items():
        assert len(names) <= ATTRIBUTES, f"{cls} has {len(names)}: {', '.join(sorted(names))}"


@bounded
def test_a_function_fits_a_screen(name: str) -> None:
    for function, lines in sizes((PACKAGE / name).read_text()).functions.items():
        most = LONGER.get(f"{name}:{function}", FUNCTION)
        assert lines <= most, f"{function} has {lines} lines, and may have {most}"


# That what is asserted above can fail: the same on small packages.


def graph_of(folder: Path, sources: Mapping[str, str]) -> Graph:
    package = folder / "package"
    for name, source in sources.items():
        file = package / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    return Graph(package)


def imported(graph: Graph, name: str) -> list[str]:
    return [each.imported for each in graph.own[name]]


@pytest.mark.parametrize(
    ("statement", "files"),
    [
        ("from .log import Log", ["hub/log.py"]),
        ("from . import log", ["hub/log.py"]),
        ("from . import log, Hub", ["hub/log.py", "hub/__init__.py"]),
        ("from . import Hub", ["hub/__init__.py"]),
        ("from .redis import keys", ["hub/redis/keys.py"]),
        ("from .redis import RedisLog", ["hub/redis/__init__.py"]),
        ("from .redis.keys import Keys", ["hub/redis/keys.py"]),
        ("from ..errors import Error", ["errors.py"]),
        ("from .. import errors, name", ["errors.py", "__init__.py"]),
        ("from .. import hub", ["hub/__init__.py"]),
        ("from ..hub import *", ["hub/__init__.py"]),
        ("import package", ["__init__.py"]),
        ("import package.hub.log as log, anyio", ["hub/log.py"]),
        ("from package.hub import log", ["hub/log.py"]),
        ("from package import name", ["__init__.py"]),
        ("import log", []),
        ("from log import Log", []),
        ("from packages import hub", []),
        ("try:\n    from . import log\nexcept ImportError:\n    pass", ["hub/log.py"]),
    ],
)
@pytest.mark.parametrize("importer", ["hub/hub.py", "hub/__init__.py"])
def test_an_import_counts_to_the_file_that_it_names(
    tmp_path: Path, statement: str, files: list[str], importer: str
) -> None:
    sources = dict.fromkeys(
        ("__init__.py", "errors.py", "hub/__init__.py", "hub/log.py", "hub/hub.py",
         "hub/redis/__init__.py", "hub/redis/keys.py"),
        "",
    )  # fmt: skip
    graph = graph_of(tmp_path, {**sources, importer: statement})
    assert imported(graph, importer) == files


@pytest.mark.parametrize(
    ("statement", "lost"),
    [
        ("from .gone import name", "package.hub.gone"),
        ("import package.gone", "package.gone"),
        ("from ... import name", "..."),
        ("from ...gone import name", "...gone"),
    ],
)
def test_an_import_that_names_no_file_is_seen(tmp_path: Path, statement: str, lost: str) -> None:
    graph = graph_of(tmp_path, {"__init__.py": "", "hub/hub.py": f"\n{statement}"})
    assert graph.lost["hub/hub.py"] == [Import("hub/hub.py", lost, When.LOADING, 2)]
    assert not imported(graph, "hub/hub.py")


def test_when_an_import_happens(tmp_path: Path) -> None:
    source = """\
import typing
import a
if typing.TYPE_CHECKING:
    import b
    def f():
        import c
else:
    import d
class C:
    import e
    async def m(self):
        import f
        if TYPE_CHECKING:
            import g
if not typing.TYPE_CHECKING:
    import h
"""
    graph = graph_of(tmp_path, {"file.py": source})
    assert {each.imported: each.when for each in graph.foreign["file.py"]} == {
        **dict.fromkeys(("typing", "a", "d", "e", "h"), When.LOADING),
        **dict.fromkeys(("b", "c", "g"), When.CHECKING),
        "f": When.CALLED,
    }


@pytest.mark.parametrize(
    "within", ["if True:\n", "if TYPE_CHECKING:\n", "def subscribe():\n", "class Hub:\n"]
)
def test_a_circle_is_found(tmp_path: Path, within: str) -> None:
    graph = graph_of(
        tmp_path,
        {
            "hub/__init__.py": "from .hub import Hub\nfrom .subscription import Subscription\n",
            "hub/hub.py": f"{within}    from .subscription import Subscription\n",
            "hub/subscription.py": "from .channel import Channel\nfrom .log import Log\n",
            "hub/channel.py": "from .. import hub\nimport package.hub.hub\n",
            "hub/log.py": "",
            "demo.py": "from .hub import Hub\n",
        },
    )
    assert graph.circle("hub/hub.py") == [
        "hub/hub.py", "hub/subscription.py", "hub/channel.py", "hub/hub.py",
    ]  # fmt: skip
    assert graph.circle("hub/__init__.py")[-2:] == ["hub/channel.py", "hub/__init__.py"]
    assert not graph.circle("hub/log.py")
    assert not graph.circle("demo.py")  # it leads into a circle, and is in none


def test_a_package_is_a_file_like_any_other(tmp_path: Path) -> None:
    """Its ``__init__`` imports a file, which names another of the package: no circle."""
    sources = {
        "hub/__init__.py": "from .hub import Hub\n",
        "hub/hub.py": "from .log import Log\n",
        "hub/log.py": "",
    }
    assert not any(map(graph_of(tmp_path, sources).circle, sources))
    sources["hub/log.py"] = "from ..hub import Hub\n"
    assert all(map(graph_of(tmp_path, sources).circle, sources))


def test_what_a_file_needs_when_it_runs(tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path,
        {
            "__init__.py": "from .encoder import encode\n",
            "encoder.py": "",
            "hub/__init__.py": "from .hub import Hub\n",
            "hub/hub.py": "def publish():\n    from ..encoder import encode\n",
            "hub/positions.py": "",
            "testing.py": "if TYPE_CHECKING:\n    from .hub import Hub\n",
            "decoder.py": "from .hub.positions import Position\n",
        },
    )
    assert not graph.way_to("hub/positions.py", {"encoder.py"})
    assert not graph.way_to("testing.py", {"encoder.py"})
    assert graph.way_to("decoder.py", {"encoder.py"}) == [
        "decoder.py", "hub/__init__.py", "hub/hub.py", "encoder.py",
    ]  # fmt: skip


def test_sizes_are_measured() -> None:
    found = sizes('''\
class Slots:
    """Text."""

    __slots__ = ("_a", "b", "__weakref__")

    def __init__(self):
        self._a = self.b = self.other.c = 1

    @property
    def p(self):
        def nested():
            pass

        return nested

    @p.setter
    def p(self, value): ...

class Assigned:
    kind: ClassVar[int] = 1

    def __init__(self, other):
        self.a, self.b = 1, 2
        if other:
            self.c: int = 3
        other.d = self.e

    def later(self):
        self.f = 1

@dataclass
class Fields:
    a: int
    b: str = ""

async def function(
    argument,
):
    return argument
''')
    assert found.lines == 39
    assert found.attributes == {"Slots": {"_a", "b"}, "Assigned": {*"abc"}, "Fields": {*"ab"}}
    assert found.functions == {
        "Slots.__init__": 2,
        "Slots.p": 5,
        "Slots.p.nested": 2,
        "Assigned.__init__": 5,
        "Assigned.later": 2,
        "function": 4,
    }


def test_a_map_is_made_from_the_imports(tmp_path: Path) -> None:
    (tmp_path / "package/above").mkdir(parents=True)
    for name, source in {
        "above/__init__.py": '"""It is :class:`Above`. And so on."""',
        "above/part.py": "from ..below import name\nfrom ..errors import Error",
        "below.py": '"""One | two\nlines.\n\nMore."""\nfrom . import errors',
        "errors.py": "",
    }.items():
        (tmp_path / "package" / name).write_text(source)
    assert rooms.table(Graph(tmp_path / "package")).splitlines()[2:] == [
        "| `errors.py` |  |  |",
        r"| `below.py` | One \| two lines |  |",
        "| `above/` | It is `Above` | `below` |",
    ]


def test_the_core_needs_anyio_alone() -> None:
    """Importing the package loads nothing else that is not in the standard library."""
    imported = imported_by_the_package(
        "import sse_asgi, sse_asgi.hub, sse_asgi.testing, sse_asgi.client"
    )
    foreign = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names
    assert foreign == CORE


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
    (tested,) = re.findall(rf"^ +{name}(?:\[\w+\])?==([\d.]+?)(?:\.0)?$", tox, re.MULTILINE)
    assert tested == allowed
