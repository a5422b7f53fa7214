"""Several nodes of several workers, that are killed: see nodes.py, which does this for longer."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ..servers.clients import Address, Response
from ..servers.harness import started, steady_port
from .nodes import Node, World
from .servers import RedisServer

pytestmark = pytest.mark.timeout(240)

#: Of streams of all kinds.
PATHS = ["/events?topic=a", "/events?topic=a&topic=b", "/events?topic=*"]


def run(world: World, record_property: Callable[[str, object], None]) -> None:
    asyncio.run(world.run())
    record_property("summary", world.summary())
    print(world.summary())
    assert (dict(world.faults), world.details) == ({}, [])
    assert world.done["deliveries"] > world.done["events"] > 0


def test_nodes_that_are_killed(record_property: Callable[[str, object], None]) -> None:
    """Nothing is lost, nothing comes twice, and all is in order."""
    with RedisServer() as redis:
        run(World(random.randrange(2**32), redis.url), record_property)


def test_the_same_application_in_memory(record_property: Callable[[str, object], None]) -> None:
    """On one node of one worker, which nobody kills."""
    world = World(random.randrange(2**32), nodes=(1,), peace=None, clients=100, seconds=5)
    run(world, record_property)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def node(redis: RedisServer, tmp_path: Path) -> Iterator[Node]:
    node = started(lambda: Node(tmp_path / "node.log", steady_port(), redis.url, workers=2))
    try:
        yield node
    finally:
        node.kill()


def publish(address: Address, data: str) -> None:
    headers = {"idempotency-key": data}
    with address.client() as client:
        client.post("/topics/a", content=data, headers=headers).raise_for_status()


def open_all(address: Address, stack: ExitStack) -> list[Response]:
    responses = [stack.enter_context(address.open(path)) for path in PATHS]
    assert [response.status for response in responses] == [200] * len(PATHS)
    return responses


@pytest.mark.parametrize("state", ["up", "killed", "paused"])
def test_a_node_stops(redis: RedisServer, node: Node, state: str) -> None:
    """At once, whatever Redis does; streams end as they should."""
    address = Address(node.port)
    publish(address, "first")
    with ExitStack() as stack:
        streams = open_all(address, stack)
        for stream in streams:
            stream.read_until(lambda body: b"first" in body)
        if state == "killed":
            redis.kill()
        elif state == "paused":
            redis.pause()
            stack.callback(redis.resume)
        streams += open_all(address, stack)
        node.signal(signal.SIGTERM)
        assert [stream.read_to_end() for stream in streams] == ["complete"] * len(streams)
    assert node.wait() == 0
    assert [line for line in node.complaints() if "lost Redis" not in line] == []


def test_a_node_starts_before_redis(redis: RedisServer, tmp_path: Path) -> None:
    """Streams open, and begin when it is there."""
    redis.kill()
    node = started(lambda: Node(tmp_path / "node.log", steady_port(), redis.url, workers=2))
    try:
        address = Address(node.port)
        with ExitStack() as stack:
            streams = open_all(address, stack)
            redis.start()
            publish(address, "first")
            for stream in streams:
                stream.read_until(lambda body: b"first" in body)
            node.signal(signal.SIGTERM)
        assert node.wait() == 0
    finally:
        node.kill()
