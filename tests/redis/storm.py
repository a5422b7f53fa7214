"""Runs, endings and kicks on two nodes, while nodes and Redis are killed; and what came of it.

    python -m tests.redis.storm --seconds 60

Nodes, proxy, clients and blows are those of nodes.py. Redis writes all to disk before it answers,
and so loses nothing when it is killed: there must be no gap.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import anyio
import httpx2

from sse_asgi.client import EventSource, State, StateChange
from sse_asgi.decoder import DecodedEvent

from ..servers.clients import DEADLINE
from .nodes import END, Client, Node, World, request
from .servers import RedisServer
from .storm_application import KICKED

#: For how many seconds a runner, or a node, is not taken for dead.
LEASE = 5.0

#: How long it may take until the end of a run is known whose node has died, in seconds: two leases,
#: and the interval in which they are looked for. And how much longer if the machine is very busy.
BOUND, SLACK = 2 * LEASE + LEASE / 5, 15.0

#: How many clients each topic has.
FOLLOWERS = 3


@dataclass
class Topic:
    """A topic with a run."""

    name: str
    #: How many events its source has; `None`: more than there is time for.
    count: int | None
    #: When it began, as far as anybody knows: in which process.
    pid: int | None = None
    #: Whether an attempt to begin it may have succeeded without an answer.
    unsure: bool = False
    #: What those were told who stopped it; `None`: nothing.
    stopped: list[bool | None] = field(default_factory=list)


class Follower(Client):
    """Reads a topic until it has ended, and comes back once more; or all topics of runs."""

    world: Storm

    def __init__(self, world: Storm, number: int, topic: str | None) -> None:
        super().__init__(world, [] if topic is None else [topic], pattern=False)
        if topic is None:
            self._wanted = ["run-*"]
        self.world = world
        self.number = number
        #: Why the runs have ended, of which it was told.
        self.reasons: list[str] = []
        self.is_told = False
        self.leaves = False

    def __repr__(self) -> str:
        return f"<Follower {self.number} of {self._wanted}, id {self._last_id}>"

    @property
    def done(self) -> bool:
        return self.leaves or (bool(self.topics) and super().done)

    async def run(self) -> None:
        await super().run()
        self.is_told = True
        while self.topics:  # an EventSource would come back
            with contextlib.suppress(OSError, EOFError):
                if await self._read() == 204:
                    return
            await asyncio.sleep(0.1)

    def _goes_on(self) -> bool:
        return self.is_told or super()._goes_on()

    def _stay(self) -> float:
        return math.inf if self.world.is_calm else super()._stay()

    def _forget(self) -> None:
        super()._forget()
        self.reasons = []

    def _query(self) -> str:
        return urlencode([("topic", self._wanted[0]), ("client", self.number)])

    def _take(self, event: DecodedEvent) -> None:
        if event.event == KICKED:
            self.world.done["kicks that clients were told of"] += 1
            return
        self.world.fault("events after the end", self.is_told, f"{self}: {event}")
        assert event.id
        self._last_id = event.id
        if event.event == "gap":
            self.gaps.append(event.data)
            return
        self.world.done["deliveries"] += 1
        if event.event == "end":
            self.reasons.append(json.loads(event.data)["reason"])
            if self.topics:
                self.events[self.topics[0]].append(END)
            return
        topic, _, data = event.data.partition(" ")
        self.events.setdefault(topic, []).append(data)
        if self.topics:
            self.world.have(topic, data, event.id)


class Subscriber(Follower):
    """Does the same by the client of the library, which reconnects by itself."""

    async def run(self) -> None:
        url = f"http://127.0.0.1:{self.world.proxy.port}/events?{self._query()}"
        async with (
            httpx2.AsyncClient(trust_env=False) as client,
            EventSource(
                url,
                client=client,
                retry=100,
                retry_on={500, 503},
                idle_timeout=20,  # more than the interval of pings
                on_state_change=self._count,
            ) as source,
        ):
            async for event in source:
                self._take(event)
                if self.topics and self.done:
                    self.is_told = True
        self.world.fault("ends before the end", not self.is_told, self)

    def _count(self, change: StateChange) -> None:
        if change.state is State.OPEN:
            self.world.done["connections of the client"] += 1
        elif change.error is not None:
            self.world.done["connections that the client lost"] += 1


class Storm(World):
    """All that goes on."""

    def __init__(
        self, seed: int, redis: RedisServer, *, seconds: float, peace: float, of_all: int
    ) -> None:
        super().__init__(
            seed,
            redis.url,
            seconds=seconds,
            peace=peace,
            application="storm_application",
            environment=(f"LEASE={LEASE}",),
        )
        self.redis = redis
        #: How many clients have all topics.
        self.of_all = of_all
        self.is_calm = False
        self.topics: list[Topic] = []
        self.followers: list[Follower] = []
        #: How long something took, at most, in seconds.
        self.slowest: dict[str, float] = {}
        self._reading: dict[Follower, asyncio.Task[None]] = {}
        self._finals: list[str] = []

    async def _live(self) -> None:
        assert self.peace is not None
        over = time.monotonic() + self.seconds
        for _ in range(self.of_all):
            self._follow(None)
        try:
            await _all(
                self._begin_runs(over),
                self._begin_finals(over),
                self._kick(over),
                self._break(over, self.peace),
                self._break_redis(over, self.peace),
            )
            self.is_calm = True
            await self._settle()
        finally:
            for task in self._reading.values():
                task.cancel()
            await asyncio.gather(*self._reading.values(), return_exceptions=True)
        for task in self._reading.values():
            if not task.cancelled():
                task.result()
        self._check_all()

    def _follow(self, topic: str | None) -> None:
        number = len(self.followers)
        # One of those of each topic.
        kind = Subscriber if number % FOLLOWERS == FOLLOWERS - 1 else Follower
        follower = kind(self, number, topic)
        self.followers.append(follower)
        self._reading[follower] = asyncio.create_task(follower.run())

    # -- what there is to follow -----------------------------------------------------------------

    async def _begin_runs(self, over: float) -> None:
        await self._until(over, 0.6, self._run)

    async def _begin_finals(self, over: float) -> None:
        await self._until(over, 2.0, self._publish_final)

    async def _until(
        self, over: float, pause: float, begin: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Begin one after the other, until the time is over, and wait for all."""
        async with asyncio.TaskGroup() as tasks:
            while time.monotonic() < over:
                tasks.create_task(begin())
                await asyncio.sleep(self.chance.expovariate(1 / pause))

    async def _publish_final(self) -> None:
        """A topic that ends with an event of an ordinary publisher."""
        topic = f"final-{len(self._finals)}"
        self._finals.append(topic)
        for _ in range(FOLLOWERS):
            self._follow(topic)
        for number in range(self.chance.randrange(40)):
            await self._insist(topic, f"0 {number}")
            await asyncio.sleep(self.chance.uniform(0, 0.1))
        await self._insist(topic, END)

    async def _run(self) -> None:
        """A run, which ends by itself, or is stopped, or goes on until the storm is over."""
        count = None if self.chance.random() < 0.4 else self.chance.randrange(60)
        topic = Topic(f"run-{len(self.topics)}", count)
        self.topics.append(topic)
        for _ in range(FOLLOWERS):
            self._follow(topic.name)
        await self._begin(topic)
        if self.chance.random() < 0.3:
            await self._begin_another(topic)
        if self.chance.random() < 0.3 and not self.is_calm:
            await asyncio.sleep(self.chance.uniform(0, 4))
            await self._stop_run(topic)

    async def _begin(self, topic: Topic) -> None:
        options = {} if topic.count is None else {"count": topic.count}
        pause = self.chance.uniform(0.1, 0.2) if topic.count is None else 0.05
        query = urlencode({**options, "pause": pause, "says": topic.name})
        status, text, topic.unsure = await self._ask("POST", f"/runs/{topic.name}?{query}")
        if status == 200:
            topic.pid = int(text)
        self.fault("runs refused", status != 200 and not topic.unsure, f"{topic}: {text}")
        self.done["runs"] += 1

    async def _begin_another(self, topic: Topic) -> None:
        """It is refused, and says nothing."""
        query = urlencode({"pause": 0, "says": "somebody else"})
        status, _, _ = await self._ask("POST", f"/runs/{topic.name}?{query}")
        self.fault("second runs", status != 409, topic)
        self.done["second runs refused"] += 1

    async def _stop_run(self, topic: Topic) -> None:
        status, text, unsure = await self._ask("DELETE", f"/runs/{topic.name}")
        self.fault("strange answers", status != 200, f"{topic}: {status} {text}")
        was_there = text == "True"
        # Who had no answer may have stopped it before.
        topic.stopped.append(True if was_there else None if unsure else False)
        self.done["stops" if was_there else "stops that came too late"] += 1

    async def _kick(self, over: float) -> None:
        while time.monotonic() < over:
            await asyncio.sleep(self.chance.expovariate(2))
            query: dict[str, object] = {}
            if self.chance.random() < 0.3:
                self.done["kicks"] += 1
                await self._ask("POST", f"/kick?rest={self.chance.randrange(4)}")
                continue
            follower = self.chance.choice(self.followers)
            if self.chance.random() < 0.7 and follower.topics:
                query["topic"] = follower.topics[0]
            if not query or self.chance.random() < 0.5:
                query["client"] = follower.number
            if self.chance.random() < 0.5:
                query["last"] = ""
            self.done["disconnects"] += 1
            await self._ask("POST", f"/disconnect?{urlencode(query)}")

    async def _ask(self, method: str, path: str) -> tuple[int, str, bool]:
        """Ask one node after the other until one answers.

        Returned are the status, the text, and whether an attempt without an answer may have done
        what was asked.
        """
        ports = self.chance.sample(self.ports, len(self.ports))
        unsure = False
        for attempt in range(10_000):
            with anyio.move_on_after(DEADLINE), contextlib.suppress(OSError, EOFError):
                status, text = await request(ports[attempt % len(ports)], method, path)
                if status != 503:
                    return status, text, unsure
            unsure = True
            self.done["asked again"] += 1
            await asyncio.sleep(0.1)
        raise AssertionError(f"{method} {path} is never answered")

    # -- who breaks things -----------------------------------------------------------------------

    def _blows(self) -> list[Callable[[int], Awaitable[None]]]:
        return [*super()._blows(), self._freeze_worker]

    async def _break(self, over: float, peace: float) -> None:
        async with asyncio.TaskGroup() as self._freezing:
            await super()._break(over, peace)

    async def _freeze_worker(self, number: int) -> None:
        """For longer than a lease: it is taken for dead, and then it goes on."""
        if workers := self._running[number].workers():
            self._freezing.create_task(self._freeze(self.chance.choice(workers)))

    async def _freeze(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self.done["SIGSTOP of a worker"] += 1
            await asyncio.sleep(LEASE * 1.3)
            os.kill(pid, signal.SIGCONT)

    async def _break_redis(self, over: float, peace: float) -> None:
        blows = [self._kill_redis, self._pause_redis, self._pause_redis]
        while time.monotonic() < over:
            self.chance.shuffle(blows)
            for blow in blows:
                await asyncio.sleep(self.chance.expovariate(1 / (2 * peace)))
                await blow()

    async def _kill_redis(self) -> None:
        await asyncio.to_thread(self.redis.kill)
        self.done["SIGKILL of Redis"] += 1
        await asyncio.sleep(self.chance.uniform(0, LEASE / 10))
        await asyncio.to_thread(self.redis.start)

    async def _pause_redis(self) -> None:
        """For longer than a command is tried, and a shorter time than would end a lease."""
        self.redis.pause()
        self.done["SIGSTOP of Redis"] += 1
        try:
            await asyncio.sleep(self.chance.uniform(LEASE / 20, LEASE / 4))
        finally:
            self.redis.resume()

    def _complaints(self, node: Node) -> list[str]:
        usual = ("the hub has lost Redis", "the hub can't reach Redis")
        return [line for line in node.complaints() if not any(words in line for words in usual)]

    # -- afterwards ------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Wait until all is as it should be; then stop what goes on."""
        await _all(*(self._run() for _ in range(4)))
        await self._in_time("presence", self._presence_is_right)
        await self._in_time("dead runs", self._no_run_is_dead)
        await self._in_time("presence, again", self._presence_is_right)
        going = [topic for topic in self.topics if self._readers(topic.name)]
        self.done["runs that go on"] += len(going)
        await _all(*map(self._stop_run, going))
        await self._in_time("the end", self._all_are_told)
        await self._in_time("those of all topics", self._all_is_told)
        for follower in self.followers:
            follower.leaves = not follower.topics
            if follower.leaves:
                self._reading[follower].cancel()
        await self._in_time("presence of nobody", self._presence_is_right)

    async def _in_time(self, what: str, condition: Callable[[], Awaitable[object]]) -> None:
        began = time.monotonic()
        while (wrong := await condition()) and time.monotonic() < began + BOUND + SLACK:
            await asyncio.sleep(0.1)
        self.slowest[what] = time.monotonic() - began
        self.fault(f"not in time: {what}", bool(wrong), wrong)

    def _of_all(self) -> Iterable[Follower]:
        return [follower for follower in self.followers if not follower.topics]

    def _readers(self, topic: str) -> list[Follower]:
        """Those who have not been told that it has ended."""
        return [
            follower
            for follower in self.followers
            if follower.topics == [topic] and not follower.is_told
        ]

    async def _presence_is_right(self) -> object:
        """Whether every node says of each topic who is there; else what is wrong."""
        for topic in self.topics:
            # Those of all topics are there, too, also in those that have ended.
            wanted = [reader.number for reader in self._readers(topic.name)]
            wanted += [reader.number for reader in self._of_all() if not reader.leaves]
            right = {"clients": sorted(wanted), "count": len(wanted)}
            for port in self.ports:
                try:
                    status, text = await request(port, "GET", f"/presence/{topic.name}")
                except (OSError, EOFError) as exc:
                    return exc
                if status != 200 or json.loads(text) != right:
                    return f"{topic}: {text} instead of {right}"
        return None

    async def _no_run_is_dead(self) -> object:
        """Whether each run has ended, or its process lives; else those that are dead."""
        return [
            topic
            for topic in self.topics
            if self._readers(topic.name)
            and (topic.count is not None or topic.pid is None or topic.pid not in self._pids())
        ]

    async def _all_are_told(self) -> object:
        return [
            follower
            for follower, task in self._reading.items()
            if follower.topics and not task.done()
        ]

    async def _all_is_told(self) -> object:
        """Whether those of all topics have been told of the end of each run; else of how many."""
        counts = [len(follower.reasons) for follower in self._of_all()]
        return counts if set(counts) - {len(self.topics)} else None

    def _pids(self) -> set[int]:
        return {pid for node in self._running.values() for pid in node.workers()}

    # -- what came of it -------------------------------------------------------------------------

    def _check_all(self) -> None:
        self._check_log()
        log = "".join(node.log() for node in (*self._ended, *self._running.values()))
        stalled = {int(pid) for pid in re.findall(r"^stalled (\d+)$", log, re.MULTILINE)}
        steady = self._pids() - stalled
        found = re.findall(r"^run (\S+) (\w+) in (\d+)$", log, re.MULTILINE)
        said = {topic: reason for topic, reason, pid in found if int(pid) in steady}
        of_all: Counter[str] = Counter()
        for topic in self.topics:
            reason = self._check_run(topic, steady)
            of_all[reason] += 1
            self.done[f"runs that were {reason}"] += 1
            other = said.get(topic.name, reason)
            self.fault("wrong reasons", other != reason, f"{topic}: {reason}, said {other}")
        for follower in self.followers:
            if follower.topics and follower.topics[0] in self._finals:
                self._check(follower)
            self.fault("gaps", len(follower.gaps), f"{follower}: {follower.gaps[:3]}")
        for follower in self._of_all():
            wrong = Counter(follower.reasons) != of_all
            self.fault("wrong ends", wrong, f"{follower}: {follower.reasons}, {of_all}")

    def _check_run(self, topic: Topic, steady: set[int]) -> str:
        """All have had the same numbers, without a gap, and the same end. Return why it ended."""
        had: dict[str, int] = {}
        ends: list[str] = []
        for follower in self.followers:
            if topic.name in (*follower.topics, *follower.events):
                numbers = follower.events.get(topic.name, [])
                if follower.topics:
                    ends += [*follower.reasons] if numbers[-1:] == [END] else ["nothing"]
                    numbers = numbers[:-1]
                had[repr(follower)] = len(numbers)
                wrong = numbers != [str(number) for number in range(len(numbers))]
                self.fault("losses or doubles", wrong, f"{follower}, {topic}: {numbers}")
        lengths = set(had.values())
        self.fault("lengths", len(lengths) != 1, f"{topic}: {had}")
        self.fault("ends", ends != [ends[0]] * FOLLOWERS, f"{topic}: {ends}")
        reason, length = ends[0], max(lengths)
        is_right = {
            "finished": length == topic.count,
            "stopped": True in topic.stopped or None in topic.stopped,
            # Nobody knows the process if there was no answer.
            "interrupted": topic.pid not in steady,
        }
        self.fault(
            "ends without a reason", not is_right.get(reason), f"{topic}: {reason}, {length}"
        )
        other = True in topic.stopped and reason != "stopped"
        self.fault("stopped, and it was not so", other, f"{topic}: {reason}")
        return reason

    def summary(self) -> str:
        times = [f"{what}: {seconds:.1f} s" for what, seconds in self.slowest.items()]
        return "\n".join([super().summary(), *times])


async def _all(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run all; if one fails, end the others."""
    async with asyncio.TaskGroup() as tasks:
        for coroutine in coroutines:
            tasks.create_task(coroutine)


def storm(seed: int, *, seconds: float = 12.0, peace: float = 0.5, of_all: int = 0) -> Storm:
    """Have it all happen.

    :param of_all: how many clients have a pattern. Seldom, one of them gets a gap event and some
        events twice: see the test in test_hub.py that is expected to fail.
    """
    with RedisServer(appendonly="yes", appendfsync="no") as redis:
        world = Storm(seed, redis, seconds=seconds, peace=peace, of_all=of_all)
        asyncio.run(world.run())
    return world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--peace", type=float, default=1.0)
    parser.add_argument("--of-all", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    world = storm(**vars(parser.parse_args()))
    print(world.summary())
    sys.exit(bool(world.faults))


if __name__ == "__main__":
    main()
