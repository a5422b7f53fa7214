"""Change the package in small ways and see whether a test fails: a tool for whoever writes tests.

``python -m tests.mutations --sample 20 --seed 1 sse_asgi/servers`` prints the changes that no
test has noticed. Some of them change nothing that matters; the others are tests to be written.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeGuard

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sse_asgi"

#: The tests that look at a module, or at a package with all that is in it.
RELEVANT = {
    "body": ["body"],
    "decoder": ["decoder"],
    "encoder": ["encoder", "event"],
    "event": ["event", "encoder"],
    "hub": ["hub", "hub_log", "redis_parts", "at_once"],
    "runtime": ["runtime", "native_scope", "supervisor", "hub", "at_once", "at_once_behind"],
    "request": ["request", "body"],
    "servers": ["seen_servers", "seen_daphne", "connections", "at_once"],
    "shutdown": ["shutdown", "seen_servers"],
    "signals": ["shutdown", "seen_servers", "runtime"],
    "source": ["app", "supervisor"],
    "threads": ["threads", "app"],
    "supervisor": [
        "supervisor",
        "joining",
        "at_once",
        "at_once_behind",
        "connections",
        "seen_servers",
    ],
    "testing": ["testing"],
}

#: Of all other modules: what runs in one process and is no matter of price.
OTHERS = ["app", "supervisor", "starlette", "shutdown", "event", "request", "testing"]

COMPARISONS: dict[type[ast.cmpop], ast.cmpop] = {
    ast.Lt: ast.LtE(), ast.LtE: ast.Lt(), ast.Gt: ast.GtE(), ast.GtE: ast.Gt(),
    ast.Eq: ast.NotEq(), ast.NotEq: ast.Eq(), ast.Is: ast.IsNot(), ast.IsNot: ast.Is(),
    ast.In: ast.NotIn(), ast.NotIn: ast.In(),
}  # fmt: skip


class Mutation(NamedTuple):
    """One change of one file."""

    path: Path
    line: int
    begin: int
    end: int
    text: str

    def of(self, source: bytes) -> bytes:
        """Return the file with the change."""
        return source[: self.begin] + self.text.encode() + source[self.end :]

    def __str__(self) -> str:
        before = self.path.read_bytes()[self.begin : self.end].decode()
        name = self.path.relative_to(ROOT).as_posix()
        return f"{name}:{self.line}: {' '.join(before.split())}  ->  {self.text}"


def changes(node: ast.AST, in_function: bool) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
    """Make the changes of one node: what is replaced, and by what."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        changed = copy.deepcopy(node)
        changed.ops = [COMPARISONS[type(node.ops[0])]]
        yield node, ast.unparse(changed)
    elif isinstance(node, ast.BoolOp):
        other = copy.deepcopy(node)
        other.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield node, f"({ast.unparse(other)})"
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield node.test, f"(not ({ast.unparse(node.test)}))"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield node, str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        for step in (1, -1):
            yield node, f"({node.value + step})"
    elif isinstance(node, ast.Return) and node.value is not None:
        if ast.unparse(node) != "return None":
            yield node, "return None"
    elif in_function and is_step(node):
        yield node, "pass"


def is_step(node: ast.AST) -> TypeGuard[ast.stmt]:
    """Return whether a statement does something, and may be left out."""
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant)
    return isinstance(node, (ast.Assign, ast.AugAssign, ast.Raise))


def walk(node: ast.AST, in_function: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Walk through what is run: no annotations, and nothing for type checkers."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.JoinedStr):  # what is in it has no place before Python 3.12
        return
    yield node, in_function
    in_function = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child, in_function)


def mutations(path: Path) -> list[Mutation]:
    """All mutations of a file."""
    source = path.read_bytes()
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    found: list[Mutation] = []
    for node, in_function in walk(ast.parse(source)):
        for old, text in changes(node, in_function):
            assert old.end_lineno is not None
            assert old.end_col_offset is not None
            begin = lines[old.lineno - 1] + old.col_offset
            end = lines[old.end_lineno - 1] + old.end_col_offset
            found.append(Mutation(path, old.lineno, begin, end, text))
    return found


def relevant(path: Path) -> list[str]:
    """Return the files of the tests for a file."""
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return [f"tests/test_{name}.py" for name in RELEVANT.get(module, OTHERS)]


def passes(folder: Path, tests: Sequence[str], timeout: float) -> bool:
    """Run tests in a copy of the repository; one that takes too long has failed."""
    command = [sys.executable, "-W", "error", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    process = subprocess.Popen(
        [*command, "--timeout", "30", "--hypothesis-seed", "0", *tests],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        return process.wait(timeout) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False


def survivors(chosen: Sequence[Mutation], folder: Path) -> Iterator[Mutation]:
    """Find the mutations that no test notices, in a copy of the repository."""
    ignored = shutil.ignore_patterns("node_modules", "__pycache__")
    for name in ("sse_asgi", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    timeouts: dict[str, float] = {}
    for mutation in chosen:
        tests = relevant(mutation.path)
        if (key := " ".join(tests)) not in timeouts:
            begin = time.monotonic()
            if not passes(folder, tests, 600):
                raise SystemExit(f"they fail without a mutation: {key}")
            timeouts[key] = 30 + 3 * (time.monotonic() - begin)
        copied = folder / mutation.path.relative_to(ROOT)
        source = copied.read_bytes()
        copied.write_bytes(mutation.of(source))
        if passes(folder, tests, timeouts[key]):
            yield mutation
        copied.write_bytes(source)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, default=[PACKAGE], help="files, or folders")
    parser.add_argument("--sample", type=int, default=20, help="how many mutations")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another sample")
    options = parser.parse_args()
    files: set[Path] = set()
    for path in map(Path.resolve, options.paths):
        files.update(path.rglob("*.py") if path.is_dir() else [path])
    found = [mutation for path in sorted(files) for mutation in mutations(path)]
    chosen = random.Random(options.seed).sample(found, min(options.sample, len(found)))
    print(f"{len(chosen)} of {len(found)} mutations", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for mutation in survivors(sorted(chosen), Path(folder)):
            print(mutation, flush=True)


if __name__ == "__main__":
    main()
