"""The peers: what each needs, has, and is started with."""

from __future__ import annotations

import compileall
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from .machine import version_of

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"

#: Where npm installs to, so that nothing of it is in the repository.
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sse_asgi-benchmarks"

NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")


class NotThereError(Exception):
    """A peer is not installed; says what is missing."""


@dataclass(frozen=True)
class Peer:
    """One of those that are measured."""

    name: str
    #: The distribution, and the modules that must be there besides uvicorn's.
    package: str = ""
    modules: tuple[str, ...] = ()
    #: The paths that it has (peers/__init__.py).
    paths: frozenset[str] = frozenset({"stream", "wait", "events", "idle"})
    #: What stands once in each of its pings, by default a comment; nothing where it has none.
    ping: bytes = b"\n:"
    #: The module in peers/ that is its server, if it has another name.
    module: str = ""

    @property
    def program(self) -> str:
        """The module in peers/ that is its server."""
        return self.module or self.name

    @property
    def import_path(self) -> tuple[Path, ...]:
        """Where Python looks for its modules, before what is installed."""
        return (ROOT,)

    @property
    def in_python(self) -> bool:
        return (PEERS / f"{self.program}.py").exists()

    def check(self) -> None:
        """:raises NotThereError: it can't be measured here."""
        for module in ("uvicorn", "uvloop", "httptools", *self.modules) if self.in_python else ():
            if importlib.util.find_spec(module.partition(".")[0]) is None:
                raise NotThereError(f"{module} is not installed")
            if "." in module and importlib.util.find_spec(module) is None:
                raise NotThereError(f"there is no {module}; it comes with a later version")

    def version(self) -> str:
        if not self.package:
            return ""
        return importlib.metadata.version(self.package)

    def command(self, server: str, port: int, folder: Path, ping: float | None) -> list[str]:
        return _SERVERS[server](f"benchmarks.peers.{self.program}:app", port)


@dataclass(frozen=True)
class Before(Peer):
    """This library as another checkout has it, in the server that this checkout has for it."""

    #: Has the package, and no ``benchmarks``.
    folder: Path = Path()

    @classmethod
    def copied(cls, checkout: Path, folder: Path) -> Before:
        """Copy the package of a checkout to an empty folder, and measure it from there.

        The checkout may be worked on, and gets no compiled files. Its own benchmarks stay behind:
        both packages are measured by the same programs.

        :raises NotThereError: there is no package in the checkout, or it can't be imported.
        """
        package = checkout / "sse_asgi"
        if not (package / "__init__.py").is_file():
            raise NotThereError(f"there is no package sse_asgi in {checkout}")
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, folder / "sse_asgi", ignore=unwanted)
        for each in (folder, ROOT):  # both as they are where they are installed
            compileall.compile_dir(each / "sse_asgi", quiet=1)
        ours = {each.name: getattr(ALL["sse_asgi"], each.name) for each in fields(Peer)}
        peer = cls(**{**ours, "name": "before"}, folder=folder)
        peer.check()
        return peer

    @property
    def program(self) -> str:
        return "sse_asgi"

    @property
    def import_path(self) -> tuple[Path, ...]:
        return (self.folder, ROOT)

    def check(self) -> None:
        super().check()
        code = (
            "import sse_asgi, benchmarks; print(sse_asgi.__file__, benchmarks.__file__, sep='\\n')"
        )
        command = [sys.executable, "-P", "-c", code]
        done = subprocess.run(
            command, env=environment_of(self), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NotThereError(f"it can't be imported: {done.stderr.strip()[-200:]}")
        files = self.folder / "sse_asgi" / "__init__.py", ROOT / "benchmarks" / "__init__.py"
        if done.stdout.splitlines() != [*map(str, files)]:
            raise NotThereError(f"imported is {' and '.join(done.stdout.split())}")


class BetterSSE(Peer):
    """On Node. npm installs it, the first time."""

    def check(self) -> None:
        if shutil.which("node") is None:
            raise NotThereError("there is no node on the PATH")
        if not (CACHE / "node_modules" / self.package).is_dir():
            if shutil.which("npm") is None:
                raise NotThereError(f"{self.package} is not installed, and there is no npm")
            CACHE.mkdir(parents=True, exist_ok=True)
            command = ["npm", "install", "--prefix", str(CACHE), "--no-fund", self.package]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NotThereError(f"npm can't install it: {done.stderr.strip()[-200:]}")

    def version(self) -> str:
        text = (CACHE / "node_modules" / self.package / "package.json").read_text()
        number = text.partition('"version": "')[2].partition('"')[0]
        return f"{number}, Node {version_of('node', '--version')}"

    def command(self, server: str, port: int, folder: Path, ping: float | None) -> list[str]:
        return ["node", str(PEERS / "better_sse.mjs"), str(port)]


class Nchan(Peer):
    """In nginx."""

    def check(self) -> None:
        if shutil.which("nginx") is None:
            raise NotThereError("there is no nginx on the PATH")
        if not NCHAN.exists():
            raise NotThereError(f"there is no {NCHAN.name}; Debian: libnginx-mod-nchan")

    def version(self) -> str:
        number = ""
        if shutil.which("dpkg-query"):
            number = version_of("dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan")
        return f"{number}, {version_of('nginx', '-v').rpartition(' ')[2]}"

    def command(self, server: str, port: int, folder: Path, ping: float | None) -> list[str]:
        config = (PEERS / "nchan.conf").read_text()
        pings = f"nchan_eventsource_ping_interval {ping:g};" if ping else ""
        (folder / "nginx.conf").write_text(
            config.format(module=NCHAN, folder=folder, port=port, files=20_000, ping=pings)
        )
        return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]


ALL = {
    peer.name: peer
    for peer in (
        Peer("raw"),
        Peer("sse_asgi"),
        Peer("sse_starlette", "sse-starlette", ("sse_starlette",)),
        Peer("fastapi_sse", "fastapi", ("fastapi.sse",)),
        Peer("litestar", "litestar", ("litestar",), ping=b""),
        BetterSSE("better_sse", "better-sse"),
        Nchan("nchan", paths=frozenset({"events", "idle"}), ping=b"event: ping"),
        Peer(
            "broadcaster",
            "broadcaster",
            ("broadcaster", "starlette"),
            frozenset({"events"}),
            ping=b"",
        ),
    )
}


def _uvicorn(app: str, port: int) -> list[str]:
    options = "--loop uvloop --http httptools --no-access-log --log-level critical --backlog 4096"
    return [sys.executable, "-m", "uvicorn", app, "--port", str(port), *options.split()]


def _granian(app: str, port: int) -> list[str]:
    options = "--interface asgi --no-ws --log-level critical --backlog 4096"
    return [sys.executable, "-m", "granian", app, "--port", str(port), *options.split()]


def _hypercorn(app: str, port: int) -> list[str]:
    options = "--worker-class asyncio --log-level CRITICAL --backlog 4096"
    return [sys.executable, "-m", "hypercorn", app, "-b", f"127.0.0.1:{port}", *options.split()]


#: The other servers that stop with streams open, for which see ``shutdown``.
BESIDE_UVICORN = ("granian", "hypercorn")

_SERVERS = {"uvicorn": _uvicorn, "granian": _granian, "hypercorn": _hypercorn}


def environment_of(peer: Peer) -> dict[str, str]:
    """The environment of a process that runs a peer in Python."""
    path = [*map(str, peer.import_path), os.getenv("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
