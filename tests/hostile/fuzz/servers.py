"""Cases on real servers: each is a request to a process that serves many of them."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from sse_asgi import CloseReason, CloseReport
from tests.servers.harness import KINDS, Server, free_port, started

from .cases import Case, Step, make, walk
from .oracle import PING, Oracle
from .stage import Message, Stage

__all__ = [
    "EAGER",
    "SERVERS",
    "TOGETHER",
    "FuzzServer",
    "batch",
    "make_served",
    "start_server",
    "stop",
]

SERVERS = ("uvicorn-h11", "uvicorn-httptools", "hypercorn", "hypercorn-trio", "granian", "daphne")

#: So many cases are open on a server at once.
TOGETHER = 12

#: A client that reads so many bytes in a second all the time is slow, and never stuck.
STEADY = 200_000

#: The environment variable that tells the application to have eager tasks.
EAGER = "SSE_ASGI_TEST_EAGER"

#: How long a stream may take to end when all is over, in seconds: machines may be busy.
PATIENCE = 20.0


class FuzzServer(Server):
    """A server with the application of the fuzz."""

    app = "tests.hostile.fuzz.served:app"


def start_server(name: str, directory: Path, *, eager: bool = False) -> FuzzServer:
    """Start a server, and wait until it answers.

    :param eager: whether its tasks begin to run when they are made (Python 3.12; asyncio).
    """
    if eager:
        os.environ[EAGER] = "1"
    try:
        return started(lambda: FuzzServer(name, directory, None, free_port()))
    finally:
        os.environ.pop(EAGER, None)


# -- cases -----------------------------------------------------------------------------------------


def _quick(steps: list[Step]) -> list[Step]:
    """Return the steps with times that fit a clock that can't jump."""
    return [[_time(step, part) for part in step] for step in steps]


def _time(step: Step, part: Any) -> Any:
    if isinstance(part, list):
        return _quick(part)
    if step[0] in ("wait", "shield", "scoped", "around") and isinstance(part, (int, float)):
        return 2 if part == 20 else part / 10
    return part


def make_served(seed: int, server: str, *, calm: bool) -> Case:
    """Make a case for servers.

    :param server: its name.
    :param calm: whether nothing may be logged in it.
    """
    while True:
        rng = random.Random(f"served {seed}")
        case = make(seed, ("bare",))
        seed += 1_000_003
        steps, feed = _quick(case.steps), _quick(case.feed)
        names = {step[0] for step in walk(steps)} | {step[0] for step in walk(feed)}
        slow = any(step[0] == "wait" and step[1] == 2 for step in walk(steps))
        in_cleanup = any(s[0] in ("event", "burst") for step in walk(steps)
                         if step[0] == "finally" for s in walk(step[2]))  # fmt: skip
        loud = names & {"raise", "bad", "around", "group", "swallow all", "swallow"} or slow
        if case.kind == "hub" or case.middleware.startswith("replay") or case.factory_raises:
            continue
        if calm and (
            loud
            or in_cleanup
            or case.middleware
            or case.kind == "bare iterator"
            or case.on_close in ("raise", "wait 30")
        ):
            continue
        break
    if server.startswith("hypercorn"):  # on trio a Panic of any application ends it
        steps, feed = (
            json.loads(json.dumps(part).replace("Panic", "Boom")) for part in (steps, feed)
        )
    options = dict(case.options)
    options["cleanup_timeout"] = 3 if calm else rng.choice((0.4, 3))
    options["send_timeout"] = rng.choice((None, 0.5, 30, 30))
    if calm and case.entry == "starlette":  # which raises after it
        options["send_timeout"] = 30
    options["ping"] = rng.choice((0, 0.03, 15))
    if "max_lifetime" in options:
        options["max_lifetime"] = rng.choice((0.05, 0.3))
    if "shutdown_grace_period" in options:
        options["shutdown_grace_period"] = rng.choice((0.02, 0.2))
    happens = _happens(rng)
    last_call = 1.2
    if any(what == "slow" and rate >= STEADY for _, what, rate in happens):
        options["send_timeout"], last_call = 1, 3.0
    on_close = "wait 0.05" if case.on_close.startswith("wait") else case.on_close
    return replace(
        case,
        steps=steps,
        feed=feed,
        options=options,
        around=None,
        on_close=on_close,
        mode=rng.choice(("bare", "group")),
        happens=happens,
        happens_at_byte=_at_byte(rng),
        # The connection's task of hypercorn waits for ever if a client leaves that has pipelined.
        pipelined=rng.random() < 0.1 and not server.startswith("hypercorn"),
        forged=rng.random() < 0.2,
        last_call=last_call,
    )


def _happens(rng: random.Random) -> list[list[Any]]:
    happens = []
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        when = rng.choice((0, 0.002, 0.02, 0.1, 0.4))
        what = rng.choice(("leave", "reset", "half close", "pause", "slow", "read", "drain"))
        argument = {"slow": rng.choice((1000, STEADY)), "drain": rng.choice((None, 0, 0.1))}
        happens.append([when, what, argument.get(what)])
    return sorted(happens, key=lambda event: float(event[0]))


def _at_byte(rng: random.Random) -> list[list[Any]]:
    if rng.random() > 0.3:
        return []
    return [[rng.choice((1, 10, 300, 5000, 100_000)),
             rng.choice(("leave", "reset", "half close", "pause", "drain")), None]]  # fmt: skip


# -- a client --------------------------------------------------------------------------------------


class Client:
    """A client of one case: reads as it is told to, and takes the response apart."""

    def __init__(self, server: FuzzServer, case: Case, name: str) -> None:
        self.case = case
        self._name = name
        self._server = server
        self._port = server.address.port
        self.status = 0
        self.body = bytearray()
        self.clean = False
        self.happened: list[tuple[float, str, Any]] = []
        self.fault = ""
        self.victim = 0  # the port of another client
        self._raw = bytearray()
        self._headers: bytes | None = None
        self._open = True
        self.over = False  # the server has ended
        self._reading = True
        self._rate = 0

    def connect(self) -> int:
        """Connect, and return the port of this client."""
        self._sock = self._server.address.connect(4096 if self.case.buffer < 65536 else None)
        port: int = self._sock.getsockname()[1]
        return port

    def _request(self, name: str) -> bytes:
        # Not as it is: servers log the target, and some words there would be taken for an error.
        target = f"/case?id={name}&case={str(self.case).encode().hex()}"
        forged = f"X-Forwarded-For: 127.0.0.1:{self.victim}\r\n" if self.case.forged else ""
        return f"GET {target} HTTP/1.1\r\nHost: x\r\n{forged}\r\n".encode()

    def run(self) -> None:
        """Play the client to its end."""
        case = self.case
        second = self._request(f"{self._name}-b") if case.pipelined else b""
        self._sock.sendall(self._request(self._name) + second)
        began = time.monotonic()
        todo = [*case.happens, [case.last_call, "leave", None]]
        at_byte = list(case.happens_at_byte)
        ends = began + PATIENCE
        try:
            while self._open and time.monotonic() < ends and (self._reading or not self.over):
                now = time.monotonic() - began
                if at_byte and len(self.body) >= at_byte[0][0]:
                    self._do(*at_byte.pop(0)[1:])
                elif todo and now >= todo[0][0]:
                    self._do(*todo.pop(0)[1:])
                else:
                    self._read(min(todo[0][0] - now, 0.5) if todo else 0.5)
        finally:
            self._sock.close()

    def _do(self, what: str, argument: Any) -> None:
        self.happened.append((0, "leave" if what in ("reset", "half close") else what, argument))
        if what == "pause":
            self._reading = False
        elif what in ("slow", "read"):
            self._reading, self._rate = True, argument or 0
        elif what == "drain":
            grace = "" if argument is None else f"&grace={argument}"
            httpx.get(f"http://127.0.0.1:{self._port}/drain?id={self._name}{grace}",
                      trust_env=False, timeout=PATIENCE)  # fmt: skip
        elif what == "half close":
            with suppress(OSError):  # the server has closed it
                self._sock.shutdown(socket.SHUT_WR)
        else:
            if what == "reset":
                linger = struct.pack("ii", 1, 0)
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._open = False
            self._sock.close()

    def _read(self, seconds: float) -> None:
        if not self._reading:
            time.sleep(max(0, min(seconds, 0.02)))
            return
        self._sock.settimeout(max(0.001, seconds))
        try:
            data = self._sock.recv(min(65536, self._rate // 20 or 65536))
        except TimeoutError:
            return
        except OSError:
            data = b""
        if self._rate:
            time.sleep(0.05)
        if not data:
            self._open = False
        self._raw += data
        self._take_apart()

    def _take_apart(self) -> None:
        if self._headers is None:
            head, found, rest = self._raw.partition(b"\r\n\r\n")
            if not found:
                return
            self._headers = bytes(head)
            self.status = int(head.split()[1])
            self._raw = rest
        if b"chunked" not in self._headers.lower():
            self.body += self._raw
            self._raw.clear()
            length = [line for line in self._headers.lower().split(b"\r\n")
                      if line.startswith(b"content-length:")]  # fmt: skip
            if length and len(self.body) >= int(length[0].split(b":")[1]):
                self.clean, self._open = True, False
            return
        while (end := self._raw.find(b"\r\n")) >= 0:
            size = int(self._raw[:end], 16)
            if len(self._raw) < end + 2 + size + 2:
                return
            self.body += self._raw[end + 2 : end + 2 + size]
            del self._raw[: end + 2 + size + 2]
            if size == 0:
                self.clean, self._open = True, False
                return


# -- the oracle ------------------------------------------------------------------------------------


class ServedOracle(Oracle):
    """What must be true, as far as it can be seen from outside."""

    cut = True

    def __init__(self, stage: Stage, server: str) -> None:
        super().__init__(stage)
        self._server = server
        self._hides = not KINDS[server].shows_errors

    def check(self) -> Iterator[str]:
        if self.seen.status in (0, 200):
            yield from self.check_status_at_once()
            yield from self.check_body()
            yield from (f for f in self.check_end() if not (self._hides and "after an error" in f))
            yield from self.check_served_report()
        yield from self.check_source()
        if self._server != "daphne":
            yield from self.check_exception()

    def possible(self) -> set[str]:
        reasons = super().possible()
        steady = all(
            what != "pause" and (what != "slow" or rate >= STEADY)
            for _, what, rate in self.seen.happened
        )
        return reasons - {"send_timeout"} if steady else reasons

    def check_served_report(self) -> Iterator[str]:
        seen, case = self.seen, self.case
        if not case.on_close:
            return
        if len(seen.reports) != 1:
            if case.factory_waits is None or len(seen.reports) > 1:
                yield f"rule 13: on_close was called {len(seen.reports)} times"
            return
        if case.on_close != "raise" and case.on_close != "wait 30" and not seen.on_close_ended:
            yield f"rule 13: on_close was cut short ({self.reason})"
        if self.reason not in self.possible():
            yield f"reason {self.reason}, possible are {sorted(self.possible())}"
        if self.prompt and self.left_at == math.inf and seen.clean:
            report = seen.reports[0]
            # Nobody knows how far a send came that was interrupted.
            known = report.bytes == len(seen.body) or self.reason in ("shutdown", "max_lifetime")
            if (not known or report.bytes > len(seen.body)) and case.middleware != "base":
                yield f"the report says {report.bytes} bytes, {len(seen.body)} came"


def _judge(case: Case, client: Client, result: dict[str, Any], server: str) -> list[str]:
    stage = Stage(case, time.monotonic, lambda: None, lambda seconds: None)
    seen, log = stage.outcome, stage.log
    for name, value in result["log"].items():
        setattr(log, name, value)
    sep = len(log._sep.encode())
    for number, size in enumerate(result["sizes"]):
        wanted = size - 6 - 2 * sep
        text = f"{number} ".ljust(wanted, "x") if wanted > 1 else str(number % 10)
        log.frames.append(f"data: {text}{log._sep}{log._sep}".encode())
    log.raised = [type(name, (Exception,), {})() for name in result["raises"]]
    log.cleanups = {
        int(n): (0.0, kind and type(kind, (Exception,), {}))
        for n, kind in result["cleanups"].items()
    }
    log.cleaned = dict.fromkeys(result["cleaned"], 0.0)
    for name in ("raised", "raised_own", "raised_cancelled", "on_close_ended", "fed", "left"):
        setattr(seen, name, result[name])
    seen.reports = [CloseReport(CloseReason(r), e, b, 0) for r, e, b in result["reports"]]
    seen.returned = 1.0
    seen.happened = [*client.happened, *((0.0, what, None) for what in result["drained"])]
    if client.status:
        seen.messages = [
            Message(0, 0, "http.response.start", b"", False, client.status),
            Message(0, 0, "http.response.body", bytes(client.body), not client.clean),
        ]
    found = list(ServedOracle(stage, server).check())
    if client.fault:
        found.insert(0, client.fault)
    found += [f"left: {count} {what}" for what, count in result["left"].items() if count]
    return found


def batch(server: FuzzServer, cases: list[Case], *, calm: bool) -> list[tuple[Case | None, str]]:
    """Run cases at once on a server, and return what is wrong, and with which."""
    found: list[tuple[Case | None, str]] = []
    port = server.address.port
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as control:
        control.get("/forget")
        before = control.get("/left").json()
        clients = [Client(server, case, f"{case.seed}-{n}") for n, case in enumerate(cases)]
        _connect(clients)
        with ThreadPoolExecutor(len(cases)) as pool:
            for future in [pool.submit(client.run) for client in clients]:
                future.result()
        for case, client in zip(cases, clients, strict=True):
            if case.pipelined:
                second = _result(control, f"{client._name}-b")
                if second is not None and not second["returned"]:
                    found.append((case, "the application of a pipelined request does not return"))
            result = _result(control, client._name)
            if result is None:
                if client.status:
                    found.append((case, "there is no result"))
            elif not result["returned"]:
                found.append((case, "the application does not return"))
            else:
                found += ((case, fault) for fault in _judge(case, client, result, server.name))
        after: dict[str, int] = {}
        ends = time.monotonic() + 10  # some keep a connection for 5 s
        while time.monotonic() < ends:
            after = control.get("/left").json()
            if all(after[what] <= before[what] for what in before):
                break
            time.sleep(0.05)
        found += [
            (None, f"left: {what} {before[what]} -> {after[what]}")
            for what in before if after[what] > before[what]
        ]  # fmt: skip
    complaints = server.new_complaints()
    if calm:
        found += [(None, f"logged: {line}") for line in complaints]
    return found


def _connect(clients: list[Client]) -> None:
    ports = [client.connect() for client in clients]
    for client, victim in zip(clients, [*ports[1:], ports[0]], strict=True):
        client.victim = victim


def _result(control: httpx.Client, name: str) -> dict[str, Any] | None:
    ends = time.monotonic() + PATIENCE
    while True:
        result: dict[str, Any] | None = control.get(f"/result?id={name}").json()
        if result is None or result["returned"] or time.monotonic() > ends:
            return result
        time.sleep(0.02)


# -- the end of a server ---------------------------------------------------------------------------

#: Sources of streams that are open when the server is told to stop. They never end by themselves.
_ENDLESS: list[list[Step]] = [
    [["for ever", [["event", 10], ["wait", 0.02]]]],
    [["for ever", [["burst", 20, 10], ["wait", 0.01]]]],
    [["event", 10], ["for ever", [["wait", 0.05]]]],
    [["finally", [["event", 10], ["for ever", [["wait", 1]]]], [["wait", 0.05]]]],
    [["for ever", [["event", 10], ["shield", 0.1]]]],
    [["event", 10], ["for ever", [["tasks"]]]],
    [["for ever", [["event", 10], ["thread"]]]],
]


def stop(server: FuzzServer, seed: int) -> list[str]:
    """Tell a server to stop while it has streams of all kinds, and return what is wrong."""
    rng, clients = random.Random(f"stop {seed}"), list[Client]()
    for number in range(TOGETHER):
        happens = rng.choice(
            ([], [], [[0.1, "pause", None]], [[rng.choice((0.2, 0.5)), "leave", None]])
        )
        case = Case(
            seed=seed + number,
            kind=rng.choice(("async", "async", "iterator")),
            entry=rng.choice(("sse_app", "starlette")),
            steps=rng.choice(_ENDLESS),
            # That of the event loop, which hears the signal.
            options={"shutdown": None, "cleanup_timeout": 1, "send_timeout": 30,
                     "ping": rng.choice((0.05, 15))},
            happens=happens,
            last_call=PATIENCE,
        )  # fmt: skip
        clients.append(Client(server, case, f"stop-{seed}-{number}"))
    found = []
    _connect(clients)
    with ThreadPoolExecutor(len(clients)) as pool:
        futures = [pool.submit(client.run) for client in clients]
        time.sleep(0.5)
        server.signal(signal.SIGTERM)
        try:
            server.wait()
        except subprocess.TimeoutExpired:
            found.append("the server does not stop")
            server.kill()
        for client in clients:
            client.over = True
        for future in futures:
            future.result()
    for client in clients:
        case, stuck = client.case, any(e[1] in ("pause", "leave") for e in client.case.happens)
        sep = b"\r\n" if case.entry == "starlette" else b"\n"
        numbers = re.sub(rb"^:\n\n|data: |x+|\r", b"", client.body, flags=re.MULTILINE).split()
        if not stuck and numbers != [b"%d" % n for n in range(len(numbers))]:
            found.append(f"events are lost or doubled: {bytes(client.body[-200:])!r} {case}")
        if not stuck and not (client.clean and client.body.endswith((sep * 2, PING))):
            found.append(f"no clean end: {bytes(client.body[-40:])!r} {case}")
    return found
