"""Servers of Redis, or of Valkey, that tests start, break and bring back."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self
from urllib.parse import quote

from ..peers import require_redis
from ..servers.clients import DEADLINE, wait_for
from ..servers.harness import Process, steady_port

if TYPE_CHECKING:
    from sse_asgi.hub import Hub


class ReplyError(Exception):
    """The server answered with an error."""


class Connection:
    """A connection to a server, for tests that ask it or change something behind one's back."""

    def __init__(
        self, port: int, password: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), DEADLINE)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        self._file: BinaryIO = self.socket.makefile("rb")
        if password is not None:
            try:
                self.command("AUTH", password)
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def command(self, *arguments: object) -> Any:
        """Send one command; its reply: str, int, None or a list of them. An error is raised."""
        self.send(*arguments)
        reply = self.receive()
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def send(self, *arguments: object) -> None:
        encoded = [
            item if isinstance(item, bytes) else str(item).encode("utf-8", "surrogateescape")
            for item in arguments
        ]
        self.socket.sendall(
            b"*%d\r\n" % len(encoded)
            + b"".join(b"$%d\r\n%s\r\n" % (len(item), item) for item in encoded)
        )

    def receive(self) -> Any:
        """The next reply; an error is returned, as it may be one among others."""
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server has closed the connection")
        kind, rest = line[:1], line[1:-2].decode("utf-8", "surrogateescape")
        if kind == b"+":
            return rest
        if kind == b"-":
            return ReplyError(rest)
        size = int(rest)
        if kind == b":":
            return size
        if size < 0:
            return None
        if kind == b"*":
            return [self.receive() for _ in range(size)]
        assert kind == b"$", line
        return self._file.read(size + 2)[:-2].decode("utf-8", "surrogateescape")


#: Kills what is left when its standard input ends, however the process that holds the other end
#: did. (prctl(PR_SET_PDEATHSIG) would kill when the *thread* ends that started the server.)
_GUARD = """
import os, signal, sys
pids = set()
for line in sys.stdin:
    (pids.add if line[0] == "+" else pids.discard)(int(line[1:]))
for pid in pids:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


@functools.cache
def _guard(owner: int) -> subprocess.Popen[str]:
    guard = subprocess.Popen(
        [sys.executable, "-S", "-c", _GUARD],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(guard.communicate)
    return guard


def _tell_guard(what: str) -> None:
    """Say "+123" when a process has started, "-123" when it has ended."""
    pipe = _guard(os.getpid()).stdin
    assert pipe is not None
    pipe.write(f"{what}\n")
    pipe.flush()


class RedisServer:
    """A server on a port and with a directory of its own; `with` starts it, and ends it for good.

    `options` are those of redis.conf, with underscores: `appendonly="yes", appendfsync="always"`,
    or `maxmemory="8mb"` (the policy is "noeviction" by default). Without any nothing is kept on
    disk, so that the server comes back empty; only a snapshot brings data back then.
    """

    #: What the program's arguments end with.
    mode: tuple[str, ...] = ()

    def __init__(self, *, password: str | None = None, **options: str) -> None:
        self._program = require_redis()
        self.password = password
        self.port = 0  # until it has started for the first time
        self._process: Process | None = None
        self._snapshots = 0
        self._options = {
            "bind": "127.0.0.1",
            "hz": "100",
            "save": '""',
            "appendonly": "no",
            "repl_diskless_sync_delay": "0",  # replicas need not wait for others
            **options,
        }
        if password is not None:
            self._options.update(requirepass=f'"{password}"', masterauth=f'"{password}"')

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self._data = self._directory / "data"
        self._data.mkdir()
        try:
            for _ in range(3):
                self.port = self._choose_port()
                self._configure()
                if self._start():
                    return self
            raise AssertionError(f"does not start: {self.log()}")
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, and delete its data."""
        self.kill()
        shutil.rmtree(self._directory)

    def _choose_port(self) -> int:
        return steady_port()

    def _lines(self) -> list[str]:
        """The configuration, port and directory apart."""
        return [f"{name.replace('_', '-')} {value}" for name, value in self._options.items()]

    def _configure(self) -> None:
        lines = [f"port {self.port}", f'dir "{self._data}"', *self._lines(), ""]
        (self._directory / "redis.conf").write_text("\n".join(lines))

    @property
    def url(self) -> str:
        user = "" if self.password is None else f":{quote(self.password, safe='')}@"
        return f"redis://{user}127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether there is a process; it may be paused."""
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None, "it does not run"
        return self._process.process.pid

    def log(self) -> str:
        """What the last process has written."""
        return (self._directory / "log").read_text(errors="replace")

    # What may happen to a server.

    def start(self) -> None:
        """Start it again, on its port and with the data that is there; wait until it answers."""
        assert self._start(), f"does not start: {self.log()}"

    def _start(self) -> bool:
        assert not self.running, "it runs already"
        self._process = Process(
            [str(self._directory / "redis.conf"), *self.mode],
            self._directory / "log",
            program=(self._program,),
        )
        process = self._process.process
        _tell_guard(f"+{process.pid}")
        wait_for(lambda: process.poll() is not None or self._ready(), self.log)
        if process.poll() is None:
            return True
        self._ended()
        return False

    def _ready(self) -> bool:
        try:
            info = self.info()
        except (OSError, ReplyError):
            return False
        # Another process may have got the port.
        return info["process_id"] == str(self.pid) and info.get("loading", "0") == "0"

    def _ended(self) -> None:
        _tell_guard(f"-{self.pid}")
        self._process = None

    def stop(self) -> None:
        """Let it stop cleanly (SIGTERM); wait until it has."""
        assert self._process is not None, "it does not run"
        self.resume()
        self._process.signal(signal.SIGTERM)
        self._process.wait()
        self._ended()

    def kill(self) -> None:
        """End it at once (SIGKILL), if it runs."""
        if self._process is not None:
            self._process.kill()
            self._ended()

    def pause(self) -> None:
        """Stop it as it is (SIGSTOP): it has its connections, and the kernel accepts more."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    # Its data.

    def snapshot(self) -> Path:
        """A copy of the data, for `restore`."""
        if self.running and self._options["appendonly"] == "no":
            self.command("SAVE")
        self._snapshots += 1
        return shutil.copytree(self._data, self._directory / f"snapshot-{self._snapshots}")

    def restore(self, snapshot: Path) -> None:
        """Put older data back while it is down."""
        self.wipe()
        shutil.copytree(snapshot, self._data, dirs_exist_ok=True)

    def wipe(self) -> None:
        """Delete the data while it is down."""
        assert not self.running, "stop it first"
        shutil.rmtree(self._data)
        self._data.mkdir()

    # Questions.

    def connect(self) -> Connection:
        return Connection(self.port, self.password)

    def command(self, *arguments: object) -> Any:
        """Send one command on a connection of its own: see `Connection.command`."""
        with self.connect() as connection:
            return connection.command(*arguments)

    def info(self, *sections: str) -> dict[str, str]:
        """The fields of INFO."""
        lines = self.command("INFO", *sections).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def calls(self, command: str) -> int:
        """How often it has carried out a command since it started."""
        statistics = self.info("commandstats").get(f"cmdstat_{command.lower()}", "calls=0")
        return int(statistics.split(",")[0].removeprefix("calls="))


@contextmanager
def any_server() -> Iterator[str]:
    """The URL of a server for tests that break nothing: a running one, if the environment names
    it (`SSE_ASGI_TEST_REDIS_URL`). Others may use it too.
    """
    if (url := os.environ.get("SSE_ASGI_TEST_REDIS_URL")) is not None:
        yield url
        return
    with RedisServer() as server:
        yield server.url


class _Node(RedisServer):
    """A node of a cluster."""

    def __init__(self, **options: str) -> None:
        super().__init__(cluster_enabled="yes", cluster_node_timeout="1000", **options)

    def _choose_port(self) -> int:
        return steady_port() - 10_000  # the nodes speak to one another on a port 10000 above

    @functools.cached_property
    def node_id(self) -> str:
        node_id: str = self.command("CLUSTER", "MYID")
        return node_id

    def sees(self, primaries: Mapping[str, str]) -> bool:
        """Whether to it the cluster works, and these nodes have these primaries, "-" being none."""
        seen = {
            fields[0]: fields[3]
            for fields in map(str.split, self.command("CLUSTER", "NODES").splitlines())
            if "handshake" not in fields[2] and "fail" not in fields[2]
        }
        works = "cluster_state:ok" in self.command("CLUSTER", "INFO")
        return works and primaries.items() <= seen.items()

    def in_sync(self) -> bool:
        """Whether it is a replica that has all of its primary's data."""
        return self.info("replication").get("master_link_status") == "up"


SLOTS = 16384


class Cluster:
    """A cluster of three primaries, each with a replica if wanted; `with` starts and ends it."""

    def __init__(self, *, replicas: bool = False, **options: str) -> None:
        self.primaries = [_Node(**options) for _ in range(3)]
        #: Of the primary with the same index.
        self.replicas = [_Node(**options) for _ in range(3 if replicas else 0)]
        self._stack = ExitStack()

    @property
    def nodes(self) -> list[_Node]:
        return [*self.primaries, *self.replicas]

    @property
    def url(self) -> str:
        """Of one of the nodes, which tells clients about the others."""
        return self.primaries[0].url

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            self._join()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def _join(self) -> None:
        for index, node in enumerate(self.nodes):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for index, node in enumerate(self.primaries):
            mine = range(SLOTS * index // 3, SLOTS * (index + 1) // 3)
            node.command("CLUSTER", "ADDSLOTS", *mine)
        for one, other in itertools.permutations(self.nodes, 2):
            one.command("CLUSTER", "MEET", "127.0.0.1", other.port)
        self._wait({node.node_id: "-" for node in self.nodes})
        for primary, replica in zip(self.primaries, self.replicas, strict=False):
            replica.command("CLUSTER", "REPLICATE", primary.node_id)
        self.wait()

    def wait(self) -> None:
        """Wait until all the nodes that run agree that they are well, and have the same data."""
        primaries = {node.node_id: "-" for node in self.primaries if node.running}
        replicas = [node for node in self.replicas if node.running]
        for node in replicas:
            primaries[node.node_id] = self.primaries[self.replicas.index(node)].node_id
        self._wait(primaries)
        for node in replicas:
            wait_for(node.in_sync, node.log)

    def _wait(self, primaries: Mapping[str, str]) -> None:
        for node in self.nodes:
            if node.running:
                wait_for(functools.partial(node.sees, primaries), node.log)

    def slot(self, key: str) -> int:
        slot: int = self.primaries[0].command("CLUSTER", "KEYSLOT", key)
        return slot

    def primary_of(self, key: str) -> int:
        """The index of the primary that has a key, while no slot has been moved."""
        return next(n for n in range(3) if self.slot(key) < SLOTS * (n + 1) // 3)

    def fail_over(self, number: int, *, kill: bool = False) -> None:
        """Let a replica take its primary's place: by agreement, so that nothing is lost, or as
        the primary is killed. The two change places in the lists, too.
        """
        primary, replica = self.primaries[number], self.replicas[number]
        if kill:
            primary.kill()
        else:
            replica.command("CLUSTER", "FAILOVER")
        wait_for(lambda: replica.info("replication")["role"] == "master", replica.log)
        self.primaries[number], self.replicas[number] = replica, primary
        self.wait()


class _Sentinel(RedisServer):
    mode = ("--sentinel",)

    def __init__(self, service: str, port: int, password: str | None) -> None:
        super().__init__()
        self._watched = [
            f"sentinel monitor {service} 127.0.0.1 {port} 1",
            # It pings once a second: with less, every new primary is taken to be down at first.
            f"sentinel down-after-milliseconds {service} 1500",
            f"sentinel failover-timeout {service} 2000",
        ]
        if password is not None:
            self._watched.append(f'sentinel auth-pass {service} "{password}"')

    def _lines(self) -> list[str]:
        return ["bind 127.0.0.1", *self._watched]


class Sentinels:
    """A primary, a replica of it, and a sentinel that watches them as `service`."""

    service = "main"

    def __init__(self, *, password: str | None = None, **options: str) -> None:
        self._password = password
        self._options = options
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.primary = stack.enter_context(
                RedisServer(password=self._password, **self._options)
            )
            self.replica = stack.enter_context(
                RedisServer(
                    password=self._password,
                    replicaof=f"127.0.0.1 {self.primary.port}",
                    **self._options,
                )
            )
            self.sentinel = stack.enter_context(
                _Sentinel(self.service, self.primary.port, self._password)
            )
            self.wait()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @property
    def port(self) -> int:
        """The sentinel's."""
        return self.sentinel.port

    def wait(self) -> None:
        """Wait until the replica is in sync and the sentinel knows it, so that it can take over."""
        wait_for(self._whole, self.sentinel.log)

    def _whole(self) -> bool:
        replicas = self.sentinel.command("SENTINEL", "REPLICAS", self.service)
        known = [dict(zip(fields[::2], fields[1::2], strict=True)) for fields in replicas]
        return any(
            replica["port"] == str(self.replica.port) and replica["master-link-status"] == "ok"
            for replica in known
        )

    def fail_over(self) -> None:
        """Kill the primary, and wait until the replica has its place. The two change names."""
        self.primary.kill()
        self.primary, self.replica = self.replica, self.primary
        address = ["127.0.0.1", str(self.primary.port)]
        wait_for(
            lambda: (
                self.sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
                == address
                and self.primary.info("replication")["role"] == "master"
            ),
            self.sentinel.log,
        )

    def bring_back(self) -> None:
        """Start what was the primary, as a replica. The sentinel would make it one after 10 s."""
        self.replica.start()
        self.replica.command("REPLICAOF", "127.0.0.1", self.primary.port)
        self.wait()


async def hurry(hub: Hub) -> None:
    """Have a hub try its commands for half a second only, once it is connected."""
    await hub.ping()
    log: Any = hub._log
    log._link.timeout = 0.5
