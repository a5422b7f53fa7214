"""Two nodes of two workers each behind a proxy, clients that come back to any of them, publishers,
and somebody who kills nodes; and what came of it.

    python -m tests.redis.nodes --clients 500 --seconds 60

The proxy is a few lines here: nginx and HAProxy would take a node that was away for dead for some
time, or try it at the expense of a client, while this one tries all nodes for every connection.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import math
import os
import random
import re
import signal
import socket
import struct
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import anyio
import psutil

from sse_asgi.decoder import DecodedEvent, EventStreamDecoder

from ..servers.clients import DEADLINE, wait_for
from ..servers.harness import KINDS, Process, steady_port
from .application import HISTORY
from .servers import RedisServer

TOPICS = [f"topic-{number}" for number in range(8)]
PUBLISHERS = 8

#: The last event of each topic.
END = "end"

#: How often a publisher does not wait for an answer, but publishes again at another node.
IMPATIENT = 0.1

#: How often a client that comes back has forgotten all that it had.
FORGETFUL = 0.03

#: For how long a client stays connected, on average, and away, at most, in seconds.
STAY, AWAY = 5.0, 0.5

_RESET = struct.pack("ii", 1, 0)


@contextmanager
def connection(
    opened: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> Iterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    try:
        yield opened
    finally:
        opened[1].close()


def reset(writer: asyncio.StreamWriter) -> None:
    """Have a connection end with TCP RST when it is closed."""
    sock: socket.socket = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


class Node(Process):
    """A server with its workers."""

    def __init__(
        self,
        log: Path,
        port: int,
        redis_url: str | None,
        workers: int,
        application: str = "application",
        environment: Sequence[str] = (),
    ) -> None:
        self.port = port
        self._workers = workers
        place = [*environment, *([] if redis_url is None else [f"REDIS_URL={redis_url}"])]
        super().__init__(
            [
                *("-m", "uvicorn", "--host", "127.0.0.1", "--port", str(port)),
                *("--workers", str(workers), "--no-access-log", f"tests.redis.{application}:app"),
            ],
            log,
            program=("env", "-u", "REDIS_URL", *place, sys.executable),
            warnings=KINDS["uvicorn-workers"].warnings,
        )

    def ready(self) -> bool:
        """Wait until all of its workers are there; false where it has exited instead."""

        def whole() -> bool:
            complete = self.log().count("Application startup complete") >= self._workers
            return complete and len(self.workers()) == self._workers

        wait_for(lambda: self.process.poll() is not None or whole(), self.log)
        return self.process.poll() is None

    def workers(self) -> list[int]:
        """The ids of the processes that serve, or begin to."""
        # Those that say so in the log, for multiprocessing has a process of its own, too.
        started = set(map(int, re.findall(r"Started server process \[(\d+)\]", self.log())))
        parent = psutil.Process(self.process.pid)
        found = {process.pid for process in (parent, *parent.children()) if _lives(process)}
        return sorted(found & started)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def request(
    port: int,
    method: str,
    path: str,
    headers: str = "",
    body: str = "",
    patience: float = math.inf,
) -> tuple[int, str]:
    """The status and the body of a response, for which it waits so many seconds."""
    with connection(await asyncio.open_connection("127.0.0.1", port)) as (reader, writer):
        writer.write(
            f"{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n"
            f"{headers}content-length: {len(body)}\r\n\r\n{body}".encode()
        )
        with anyio.fail_after(patience):
            head, _, text = (await reader.read()).decode().partition("\r\n\r\n")
        if not head:
            raise EOFError
        return int(head.split(" ")[1]), text


class RoundRobin:
    """A proxy in front of the nodes that are there, each in its turn."""

    def __init__(self, targets: list[int]) -> None:
        self.port = 0
        self._targets = targets
        self._turns = itertools.cycle(targets)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", backlog=1000)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with connection((reader, writer)):
            for _ in self._targets:
                try:
                    opened = await asyncio.open_connection("127.0.0.1", next(self._turns))
                except OSError:
                    continue
                with connection(opened):
                    ways = [
                        asyncio.create_task(self._copy(reader, opened[1])),
                        asyncio.create_task(self._copy(opened[0], writer)),
                    ]
                    try:
                        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        for way in ways:
                            way.cancel()
                        await asyncio.wait(ways)
                return

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:  # pass that on, too
            reset(writer)


class Client:
    """Reads some topics, through the proxy, until all of them have ended."""

    def __init__(self, world: World, topics: list[str], *, pattern: bool) -> None:
        self._world = world
        self._chance = world.chance
        self.topics = topics
        self._wanted = ["topic-*"] if pattern else topics
        #: All that it has had, by topic.
        self.events: dict[str, list[str]] = {topic: [] for topic in topics}
        self.gaps: list[str] = []
        self._last_id: str | None = None

    def __repr__(self) -> str:
        return f"<Client of {', '.join(self._wanted)}, id {self._last_id}>"

    @property
    def done(self) -> bool:
        return all(events and events[-1] == END for events in self.events.values())

    async def run(self) -> None:
        done = self._world.done
        while not self.done:
            self._world.done["connections"] += 1
            with anyio.move_on_after(self._stay()) as stay:
                try:
                    await self._read()
                except EOFError:
                    done["streams broken off"] += 1
                except OSError:
                    done["connections lost"] += 1
            if stay.cancelled_caught:
                done["streams left by the client"] += 1
            if self._chance.random() < FORGETFUL:
                done["ids forgotten"] += 1
                self._forget()
            await asyncio.sleep(self._chance.uniform(0, AWAY))

    def _stay(self) -> float:
        """For how long it stays connected."""
        return self._chance.expovariate(1 / STAY)

    def _forget(self) -> None:
        self._last_id = None
        self.events = {topic: [] for topic in self.topics}

    def _query(self) -> str:
        self._chance.shuffle(self._wanted)
        return urlencode([("topic", topic) for topic in self._wanted])

    async def _read(self) -> int:
        """Read a stream, until it or the client is at the end; the status."""
        request = f"GET /events?{self._query()} HTTP/1.1\r\nhost: test\r\n"
        if self._last_id is not None:
            request += f"last-event-id: {self._last_id}\r\n"
        opened = await asyncio.open_connection("127.0.0.1", self._world.proxy.port)
        with connection(opened) as (reader, writer):
            if self._chance.random() < 0.5:
                reset(writer)  # when it is closed
            writer.write(f"{request}\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 "):
                self._world.done[f"status {head[9:12].decode()} of a stream"] += 1
                return int(head[9:12])
            decoder = EventStreamDecoder()
            while self._goes_on():
                size = int(await reader.readuntil(b"\r\n"), 16)
                chunk = (await reader.readexactly(size + 2))[:-2]
                if not chunk:
                    self._world.done["streams ended"] += 1
                    break
                for event in decoder.feed(chunk):
                    self._take(event)
        return 200

    def _goes_on(self) -> bool:
        """Whether it wants more of a stream."""
        return not self.done

    def _take(self, event: DecodedEvent) -> None:
        self._last_id = event.id
        if event.event == "gap":
            self.gaps.append(event.data)
            return
        topic, _, data = event.data.partition(" ")
        self.events[topic].append(data)
        self._world.done["deliveries"] += 1
        if self._wanted == [topic]:
            self._world.have(topic, data, event.id)


@dataclass
class World:
    """All that goes on."""

    seed: int
    redis_url: str | None = None
    #: Of how many workers each node is.
    nodes: tuple[int, ...] = (2, 2)
    clients: int = 200
    seconds: float = 20.0
    #: How many events are published in a second.
    rate: float = 30.0
    #: How long to leave the nodes alone between one blow and the next, on average, in seconds.
    peace: float | None = 1.0
    #: The module that the nodes serve.
    application: str = "application"
    #: Further variables of their environment.
    environment: Sequence[str] = ()
    #: What happened, and how often.
    done: Counter[str] = field(default_factory=Counter)
    #: What must not happen, and how often it did.
    faults: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    #: The longest time that a node took to stop when it was told to, in seconds.
    slowest_stop: float = 0.0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.ports = [steady_port() for _ in self.nodes]
        self.proxy = RoundRobin(self.ports)
        self._running: dict[int, Node] = {}
        self._ended: list[Node] = []
        # The ids of events, as publishers were told, or as clients of a single topic got them.
        self._ids: dict[tuple[str, str], str] = {}
        # What publishers were told was stored, by offset.
        self._stored: defaultdict[str, dict[int, str]] = defaultdict(dict)

    def fault(self, what: str, times: int, detail: object) -> None:
        if times:
            self.faults[what] += times
            self.details.append(f"{what}: {detail}")

    def have(self, topic: str, data: str, event_id: str) -> None:
        """An event has this id; it must not have another one elsewhere."""
        known = self._ids.setdefault((topic, data), event_id)
        self.fault("wrong ids", known != event_id, f"{topic} {data}: {known}, {event_id}")

    async def run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="nodes-") as directory:
            self._directory = Path(directory)
            try:
                async with AsyncExitStack() as stack:
                    await asyncio.gather(*map(self._start, range(len(self.nodes))))
                    await stack.enter_async_context(self.proxy.serve())
                    await self._live()
                for number in range(len(self.nodes)):
                    await self._stop(number)
            finally:
                for node in self._running.values():
                    node.kill()
                for node in [*self._ended, *self._running.values()]:
                    self.details += [f"log: {line}" for line in self._complaints(node)]

    def _complaints(self, node: Node) -> list[str]:
        return node.complaints()

    async def _live(self) -> None:
        everyone = [self._client(number) for number in range(self.clients)]
        readers = [asyncio.create_task(client.run()) for client in everyone]
        try:
            over = time.monotonic() + self.seconds
            publishers = [self._publish(number, over) for number in range(PUBLISHERS)]
            breaking = [] if self.peace is None else [self._break(over, self.peace)]
            await asyncio.gather(*publishers, *breaking)
            for topic in TOPICS:
                await self._insist(topic, END)
            await asyncio.wait(readers, timeout=DEADLINE)
            for client, reader in zip(everyone, readers, strict=True):
                self.fault("clients without the end", not reader.done(), client)
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
        self._check_log()
        for client, reader in zip(everyone, readers, strict=True):
            if not reader.cancelled():
                reader.result()
            self._check(client)

    def _client(self, number: int) -> Client:
        if number % 10 == 0:
            return Client(self, TOPICS, pattern=True)
        topics = self.chance.sample(TOPICS, self.chance.choice([1, 1, 2, 4]))
        return Client(self, topics, pattern=False)

    # -- publishers ------------------------------------------------------------------------------

    async def _publish(self, publisher: int, over: float) -> None:
        for number in itertools.count():
            await asyncio.sleep(self.chance.expovariate(self.rate / PUBLISHERS))
            if time.monotonic() > over:
                return
            await self._insist(self.chance.choice(TOPICS), f"{publisher} {number}")

    async def _insist(self, topic: str, data: str) -> None:
        """Publish until it is stored, once."""
        event_id = await self._store(topic, data)
        self.done["events"] += 1
        self.have(topic, data, event_id)
        offset = int(event_id.rpartition("-")[2])
        there = self._stored[topic].setdefault(offset, data)
        self.fault("ids given twice", there != data, f"{topic} {offset}: {there}, {data}")

    async def _store(self, topic: str, data: str) -> str:
        """Publish, again and again, at one node after the other, until one says that it is done."""
        ports = self.chance.sample(self.ports, len(self.ports))
        for attempt in range(10_000):
            if attempt:
                self.done["published again"] += 1
                await asyncio.sleep(0.1 if attempt >= len(ports) else 0)
            wait = self.chance.random() >= IMPATIENT
            with anyio.move_on_after(DEADLINE), contextlib.suppress(OSError, EOFError):
                port = ports[attempt % len(ports)]
                if (event_id := await self._post(port, topic, data, wait=wait)) is not None:
                    return event_id
        raise AssertionError(f"{topic} {data} is never stored")

    async def _post(self, port: int, topic: str, data: str, *, wait: bool) -> str | None:
        path, body = f"/topics/{topic}", f"{topic} {data}"
        headers = f"idempotency-key: {data}\r\n"
        patience = math.inf if wait else self.chance.uniform(0, 0.003)
        status, event_id = await request(port, "POST", path, headers, body, patience)
        if status != 200:
            self.done[f"status {status} of a publication"] += 1
            return None
        return event_id or None

    # -- who breaks things -----------------------------------------------------------------------

    async def _break(self, over: float, peace: float) -> None:
        """One thing after another, until the time is over and everything has happened."""
        blows = self._blows()
        for turn in itertools.count():
            self.chance.shuffle(blows)
            for blow in blows:
                await asyncio.sleep(self.chance.expovariate(1 / peace))
                if turn and time.monotonic() > over:
                    for node in self._running.values():
                        await asyncio.to_thread(node.ready)
                    return
                await blow(self.chance.randrange(len(self.nodes)))

    def _blows(self) -> list[Callable[[int], Awaitable[None]]]:
        return [self._kill_worker, self._stop_worker, self._kill_node, self._restart_node]

    async def _kill_worker(self, number: int) -> None:
        self._signal_worker(number, signal.SIGKILL)

    async def _stop_worker(self, number: int) -> None:
        self._signal_worker(number, signal.SIGTERM)

    def _signal_worker(self, number: int, what: signal.Signals) -> None:
        if workers := self._running[number].workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.chance.choice(workers), what)
                self.done[f"{what.name} of a worker"] += 1

    async def _kill_node(self, number: int) -> None:
        node = self._running.pop(number)
        self._ended.append(node)
        await asyncio.to_thread(node.kill)
        self.done["SIGKILL of a node"] += 1
        await asyncio.sleep(self.chance.uniform(0, 1))
        await self._start(number)

    async def _restart_node(self, number: int) -> None:
        await self._stop(number)
        await self._start(number)

    async def _start(self, number: int) -> None:
        log = self._directory / f"{len(self._ended)}-{number}.log"
        node = Node(
            log,
            self.ports[number],
            self.redis_url,
            self.nodes[number],
            self.application,
            self.environment,
        )
        self._running[number] = node
        assert await asyncio.to_thread(node.ready), node.log()

    async def _stop(self, number: int) -> None:
        node = self._running[number]
        began = time.monotonic()
        node.signal(signal.SIGTERM)
        code = await asyncio.to_thread(node.wait)
        self.slowest_stop = max(self.slowest_stop, time.monotonic() - began)
        self.done["SIGTERM of a node"] += 1
        # uvicorn without workers puts the signal's handler back and raises it again.
        usual = 0 if self.nodes[number] > 1 else -signal.SIGTERM
        self.fault("strange exit codes", code != usual, code)
        self._ended.append(self._running.pop(number))

    # -- what came of it -------------------------------------------------------------------------

    def _check_log(self) -> None:
        """Each event was stored once, and in the order of its publisher."""
        for topic, stored in self._stored.items():
            strange = set(range(1, len(stored) + 1)) ^ stored.keys()
            self.fault("events stored twice", len(strange), f"{topic}: {sorted(strange)}")
            last: Counter[str] = Counter()
            for _, data in sorted(stored.items()):
                if data != END:
                    publisher, number = data.split()
                    wrong = int(number) < last[publisher]
                    self.fault("events out of order", wrong, f"{topic}: {data}")
                    last[publisher] = int(number)

    def _check(self, client: Client) -> None:
        """A client has had what was stored, each event once, in order."""
        self.fault("gaps", len(client.gaps), f"{client}: {client.gaps[:3]}")
        for topic, events in client.events.items():
            stored = [data for _, data in sorted(self._stored[topic].items())]
            offsets = {data: offset for offset, data in enumerate(stored)}
            had = [offsets.get(data, -1) for data in events]
            who = f"{client}, {topic}"
            self.fault("unknown events", had.count(-1), who)
            # It began with the history that there was then.
            begin = min(min(had, default=0), max(0, len(stored) - HISTORY))
            losses = sorted(set(range(begin, len(stored))) - set(had))
            self.fault("losses", len(losses), f"{who}: {losses[:10]}")
            doubles = [offset for offset, times in Counter(had).items() if times > 1]
            self.fault("doubles", len(had) - len(set(had)), f"{who}: {doubles[:10]}")
            swaps = [after for before, after in itertools.pairwise(had) if after < before]
            self.fault("events out of order", len(swaps), f"{who}: {swaps[:10]}")

    def summary(self) -> str:
        must_not = ["losses", "doubles", "gaps", "events out of order", "events stored twice"]
        lines = [f"{what}: {times}" for what, times in sorted(self.done.items())]
        faults = {**dict.fromkeys(must_not, 0), **self.faults}
        lines += [f"{what}: {times}" for what, times in faults.items()]
        lines.append(f"slowest stop: {self.slowest_stop:.2f} s")
        return "\n".join([f"seed: {self.seed}", *lines, *self.details])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--peace", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    arguments = vars(parser.parse_args())
    with RedisServer() as redis:
        world = World(redis_url=redis.url, **arguments)
        asyncio.run(world.run())
    print(world.summary())
    sys.exit(bool(world.faults))


if __name__ == "__main__":
    main()
