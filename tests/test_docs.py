"""The documentation: every example is run, every public name is in the reference."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import anyio
import httpx
import pytest
from asgi_lifespan import LifespanManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from starlette.applications import Starlette
from starlette.routing import Route

import sse_asgi
from sse_asgi import SSEApp
from sse_asgi.testing import connect

from .peers import missing
from .redis.servers import any_server
from .servers.harness import free_port

ROOT = Path(__file__).parents[1]
PAGES = {str(p.relative_to(ROOT)): p for p in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"))}
PORT_OPTIONS = {
    "uvicorn": "--port {}",
    "hypercorn": "--bind 127.0.0.1:{}",
    "granian": "--port {}",
    "gunicorn": "--bind 127.0.0.1:{}",
    "daphne": "--port {}",
}
HANG = 60

#: What an example that relays another server answers where that is not there.
NO_UPSTREAM = 502


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    line: int
    text: str


def blocks(page: str) -> Iterator[Block]:
    text = PAGES[page].read_text()
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(match[1], text.count("\n", 0, match.start(2)), match[2])


#: How a block begins that is a file which the reader writes, or puts at the end of one.
FILE_NAME = re.compile(
    r"(?:#|//|<!--) ([\w-]+\.(?:py|js|mjs|html|ini|toml))(, continued)?(?: -->)?\n"
)


def write_files(page: str, directory: Path) -> None:
    """Write the files that the reader of a page has written, or saved from another page."""
    for name, other in re.findall(r"Save \[`([\w.]+)`\]\(([\w-]+\.md)", PAGES[page].read_text()):
        beside = str(Path(page).with_name(other))
        (text,) = [b.text for b in blocks(beside) if b.text.startswith(f"// {name}\n")]
        (directory / name).write_text(text)
    for block in blocks(page):
        if block.language == "diff":  # what the reader changes later
            continue
        if name := FILE_NAME.match(block.text):
            with (directory / name[1]).open("a" if name[2] else "w") as file:
                file.write(block.text)


def change_file(change: str, directory: Path) -> Path:
    """Change a file as a block of `diff` shows it. A line of dots stands for what it leaves out."""
    first, *lines = change.splitlines()
    name = FILE_NAME.fullmatch(f"{first}\n")
    assert name, change
    file = directory / name[1]
    text = file.read_text()
    for part in "\n".join(lines).split("\n...\n"):
        before, after = (
            "".join(f"{line[1:]}\n" for line in part.splitlines() if line[:1] != sign)
            for sign in "+-"
        )
        assert text.count(before) == 1, f"{file.name} does not have {before!r} once"
        text = text.replace(before, after)
    file.write_text(text)
    return file


def pages_with(language: str, pattern: str = "") -> list[str]:
    """The pages with a block of `language` that has `pattern` in it."""
    return sorted(
        page
        for page in PAGES
        if any(
            b.language == language and re.search(pattern, b.text, re.MULTILINE)
            for b in blocks(page)
        )
    )


# Python. The files of a page are run in order, each as a module of its own. Each application that a
# block makes is asked for an event, by each of its routes, and each test that it defines is run.

#: What FastAPI adds by itself.
NO_STREAMS = ("openapi", "swagger_ui_html", "swagger_ui_redirect", "redoc_html")


#: A hub in memory need not be open, except for these.
NEED_AN_OPEN_HUB = ("REDIS_URL", "hub.run(", "presence=True")

#: A package whose middleware does not run on trio.
NEEDS_ASYNCIO = "prometheus_fastapi_instrumentator"

# tests/frameworks runs the programs of that page, where the frameworks are.
ONE_PROGRAM = sorted({*pages_with("python")} - {"docs/how-to/frameworks.md"})


@pytest.fixture(autouse=True)
def redis(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where a page needs Redis there is one."""
    page = request.node.callspec.params.get("page") if hasattr(request.node, "callspec") else None
    if page is None or "REDIS_URL" not in PAGES[page].read_text():
        yield
        return
    with any_server() as url:
        monkeypatch.setenv("REDIS_URL", url)
        yield


# On trio httpx does not close all of its own when a response is left early.
@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
# Nor does coredis when a connection is cut short: tests/redis/conftest.py.
@pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
@pytest.mark.parametrize("page", ONE_PROGRAM)
def test_python_examples(
    page: str, anyio_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("sse_starlette", "sse_starlette.sse", "sse_starlette.event"):  # replaced by a page
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name, sse_asgi))
    run: Any = partial(anyio.run, backend=anyio_backend)
    opened = any(word in PAGES[page].read_text() for word in NEED_AN_OPEN_HUB)
    namespaces: dict[str, dict[str, Any]] = {}
    for block in blocks(page):
        # What is for pytest-asyncio is run by it: see test_tests_run_as_they_are_typed.
        if block.language not in ("python", "diff") or "pytest.mark.asyncio" in block.text:
            continue
        if anyio_backend == "trio" and NEEDS_ASYNCIO in block.text:
            continue
        if block.language == "diff":
            source = change_file(block.text, tmp_path).read_text()
        else:
            source = "\n" * block.line + block.text  # so that line numbers are those of the page
        file = FILE_NAME.match(block.text)
        assert file, block.text
        if not file[2]:
            # A module, for those who look up where a function was defined, or import it.
            module = ModuleType(file[1].removesuffix(".py"))
            namespaces[file[1]] = vars(module)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        namespace = namespaces[file[1]]
        before = dict(namespace)
        exec(compile(source, PAGES[page], "exec"), namespace)
        for name, value in list(namespace.items()):  # a warning adds a name
            if value is before.get(name):
                continue
            if isinstance(value, SSEApp):
                run(give_an_event, value, "/", opened)
            elif name.startswith("test_") and not inspect.signature(value).parameters:
                run(value) if inspect.iscoroutinefunction(value) else value()
    apps = [
        app for each in namespaces.values() for app in each.values() if isinstance(app, Starlette)
    ]
    for app in apps:
        for route in app.routes:
            # One with a parameter needs a value that means something there: tests/test_answers.py.
            if isinstance(route, Route) and "{" not in route.path and route.name not in NO_STREAMS:
                run(give_an_event, app, route.path, opened)


async def give_an_event(app: Any, path: str, opened: bool) -> None:
    async with AsyncExitStack() as stack:
        stack.enter_context(anyio.fail_after(HANG))
        if opened:
            await stack.enter_async_context(LifespanManager(app))
        async with connect(app, path) as stream:
            if stream.status_code == 200:
                if stream.headers["content-type"].startswith("text/event-stream"):
                    await stream.receive()
            else:
                assert 400 <= stream.status_code < 500 or stream.status_code == NO_UPSTREAM


@pytest.mark.parametrize("page", ONE_PROGRAM)
def test_each_program_is_a_file_and_something_runs_it(page: str) -> None:
    """A command of the page does, or a file that imports it."""
    commands = "".join(block.text for block in blocks(page) if block.language == "sh")
    programs = [block.text for block in blocks(page) if block.language == "python"]
    for text in programs:
        name = FILE_NAME.match(text)
        assert name, text
        if name[1] not in ("conftest.py", "sentinel.py"):  # there is no Sentinel here
            module = name[1].removesuffix(".py")
            imported = rf"^(from|import) {module}\b"
            assert re.search(rf"\b{module}(\.py|:\w+)\b", commands) or any(
                re.search(imported, other, re.MULTILINE) for other in programs
            ), text


# Shell. A block `# name.py` is a file that the reader has written. Servers that the reader starts
# are started, and the curl commands that follow are run against them.


@pytest.mark.parametrize("page", pages_with("sh", rf"^({'|'.join(PORT_OPTIONS)}) "))
def test_shell_examples(page: str, tmp_path: Path) -> None:
    first = next(block.text for block in blocks(page) if block.language == "python")
    command, curls = "", list[str]()
    write_files(page, tmp_path)
    with ExitStack() as beside:
        for block in blocks(page):
            if block.language == "diff":
                check_server(command, curls, tmp_path, first)
                change_file(block.text, tmp_path)
                command, curls = "", []
            for line in block.text.splitlines() if block.language == "sh" else ():
                if line.startswith("openssl "):
                    make_certificate(line, tmp_path)
                elif "--port " in line:  # it goes on while the page starts others
                    beside.enter_context(serving_beside(line, tmp_path))
                elif line.split()[0] in PORT_OPTIONS:
                    check_server(command, curls, tmp_path, first)
                    command, curls = line, []
                elif line.startswith("curl "):
                    curls.append(line)
        check_server(command, curls, tmp_path, first)


def make_certificate(command: str, directory: Path) -> None:
    if shutil.which("openssl") is None:
        missing("servers", "there is no openssl on the PATH")
    subprocess.run(shlex.split(command), cwd=directory, check=True, capture_output=True)


def check_server(command: str, curls: list[str], directory: Path, first_example: str) -> None:
    if not command:
        return
    file = directory / f"{command.split()[-1].removesuffix(':app')}.py"
    if not file.exists():  # a page that only has one example need not name it
        file.write_text(first_example)
    with serving(command, directory) as url:
        for curl in curls:
            if shutil.which("curl") is None:
                missing("servers", "there is no curl on the PATH")
            assert "http://127.0.0.1:8000/" in curl
            arguments = shlex.split(curl.replace("http://127.0.0.1:8000/", url))
            answer = subprocess.run([*arguments, "-sS", "-m", "1"], capture_output=True, text=True)
            assert "data: " in answer.stdout, answer.stderr


@contextmanager
def serving_beside(command: str, directory: Path) -> Iterator[None]:
    """Run a server that the programs of the page reach by the port that its command line has."""
    shown = re.sub(r".* --port (\d+) .*", r"http://127.0.0.1:\1/", command)
    with serving(command, directory) as url:
        for file in directory.glob("*.py"):
            file.write_text(file.read_text().replace(shown, url))
        yield


@contextmanager
def serving(command: str, directory: Path) -> Iterator[str]:
    """Run a server by its command line, on another port, until the block ends."""
    server, *arguments = shlex.split(command)
    scheme = "https" if "--certfile" in arguments else "http"
    url = f"{scheme}://127.0.0.1:{(port := free_port())}/"
    arguments += PORT_OPTIONS[server].format(port).split()
    client = httpx.Client(trust_env=False, verify=False)
    with (directory / "log").open("w+") as log, client:
        process = subprocess.Popen(
            [sys.executable, "-m", server, *arguments],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
        try:
            for _ in range(HANG * 10):
                try:
                    with client.stream("GET", url, timeout=HANG) as response:
                        assert response.status_code < 500 or response.status_code == NO_UPSTREAM
                    break
                except httpx.ConnectError:
                    assert process.poll() is None, (directory / "log").read_text()
                    time.sleep(0.1)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(HANG)


@pytest.mark.parametrize("page", pages_with("sh", r"^python \w+\.py$"))
def test_programs_print_what_the_page_shows(page: str, tmp_path: Path) -> None:
    write_files(page, tmp_path)
    shown = list(blocks(page))
    for block, after in pairwise(shown):
        found = re.fullmatch(r"python (\w+\.py)\n", block.text)
        if block.language == "sh" and found and after.language == "text":
            done = subprocess.run(
                [sys.executable, found[1]],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
            )
            assert done.stdout == after.text, done.stderr


@pytest.mark.timeout(600)  # several processes, one after another
@pytest.mark.parametrize("page", pages_with("sh", r"^(python -m )?pytest "))
def test_tests_run_as_they_are_typed(page: str, tmp_path: Path) -> None:
    """The commands of the page, among its files, with pytest's settings there or none."""
    write_files(page, tmp_path)
    for block in blocks(page):
        if block.language == "py":  # its packages are elsewhere: tests/frameworks
            (tmp_path / block.text.split()[1]).unlink()
    commands = [
        shlex.split(line)
        for block in blocks(page)
        if block.language == "sh"
        for line in block.text.splitlines()
        if re.match(r"(python -m )?pytest\b", line)
    ]
    for command in commands:
        arguments = command[command.index("pytest") + 1 :]
        if all((tmp_path / each).exists() for each in arguments):
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *arguments, "-p", "no:cacheprovider"],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout
            assert "skipped" not in done.stdout.splitlines()[-1]


def test_the_worker_goes_on_where_it_was(tmp_path: Path) -> None:
    """The client of docs/how-to/client.md, and the server to try it with."""
    for block in blocks("docs/how-to/client.md"):
        if name := re.match(r"# (server|worker)\.py\n", block.text):
            (tmp_path / f"{name[1]}.py").write_text(block.text)
    numbers: list[int] = []
    worker = tmp_path / "worker.py"
    with serving("uvicorn server:app", tmp_path) as url:
        worker.write_text(worker.read_text().replace("http://127.0.0.1:8000/", url))
        for _ in range(2):
            with subprocess.Popen(
                [sys.executable, worker],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "*"},
                stdout=subprocess.PIPE,
            ) as process:
                assert process.stdout is not None
                numbers += [int(process.stdout.readline()) for _ in range(3)]
                process.kill()
    # It may have been killed between its print and its write, and after more than it printed here.
    assert numbers[:3] == [1, 2, 3]
    assert numbers[3:] == [numbers[3], numbers[3] + 1, numbers[3] + 2]
    assert numbers[3] >= 3


# The reference.


@pytest.mark.parametrize(
    "module",
    [
        "sse_asgi",
        "sse_asgi.hub",
        "sse_asgi.hub.redis",
        "sse_asgi.starlette",
        "sse_asgi.fastapi",
        "sse_asgi.client",
        "sse_asgi.testing",
        "sse_asgi.decoder",
        "sse_asgi.encoder",
        "sse_asgi.types",
    ],
)
def test_every_public_name_is_in_the_reference(module: str) -> None:
    _, _, section = PAGES["docs/reference.md"].read_text().partition(f"## {module}\n")
    section, _, _ = section.partition("\n## ")
    documented = re.findall(r"^\.\. (?:auto|py:)\w+:: (\w+)\b(?!\.)", section, re.MULTILINE)
    assert sorted(set(importlib.import_module(module).__all__) - set(documented)) == []


def test_every_page_is_in_the_index() -> None:
    index = PAGES["docs/index.md"].read_text()
    toctrees = re.findall(r"^```{toctree}\n(.*?)^```$", index, re.MULTILINE | re.DOTALL)
    lines = [line for tree in toctrees for line in tree.splitlines() if line and line[0] != ":"]
    listed = [line.rpartition(" ")[2].strip("<>") for line in lines]
    pages = {name.removeprefix("docs/").removesuffix(".md") for name in PAGES} - {"README", "index"}
    assert sorted(listed) == sorted(pages)


@pytest.mark.parametrize("file", sorted({*PAGES, "CONTRIBUTING.md", "SECURITY.md"}))
def test_links_lead_somewhere(file: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / file).read_text()):
        if "://" not in target:
            assert (ROOT / file).parent.joinpath(target).exists(), target


def test_nobody_is_told_to_install_what_is_not_published() -> None:
    """Until there is a release on PyPI: from a clone."""
    for file in (*PAGES.values(), *(ROOT / "sse_asgi").rglob("*.py")):
        assert not re.search(r"pip install [^\n&]*\bsse[-_]asgi\b", file.read_text()), file


def test_it_is_cited_by_its_version() -> None:
    assert f"\nversion: {sse_asgi.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_versions_for_development_are_those_that_are_allowed() -> None:
    """And they name no place to get them from."""
    lines = (ROOT / "requirements/dev.txt").read_text().splitlines()
    pinned = {
        canonicalize_name(each.name): each.specifier
        for each in (Requirement(line) for line in lines if not line.startswith("#"))
        if each.marker is None or each.marker.evaluate()
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
    ]
    for text in (text for group in groups for text in group if isinstance(text, str)):
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate():
            (version,) = pinned[canonicalize_name(needed.name)]
            assert needed.specifier.contains(version.version, prereleases=True), text


def test_workflows_name_actions_by_their_commits() -> None:
    files = sorted((ROOT / ".github/workflows").glob("*.yml"))
    for file in files:
        for used in re.findall(r"uses: (.*)", file.read_text()):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), (file, used)
