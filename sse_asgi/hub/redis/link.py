"""The connection to Redis: a client, which is replaced when it is lost, and retries."""

from __future__ import annotations

import logging
import math
import random
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar
from urllib.parse import parse_qs, urlsplit

import anyio
from coredis import Redis, RedisCluster
from coredis import exceptions as redis
from coredis.connection import TCPLocation
from coredis.retry import ConstantRetryPolicy, NoRetryPolicy

from ...errors import HubClosedError, HubError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator

    from anyio.abc import TaskGroup, TaskStatus

    from ..remote_log import RoundTrip

__all__ = ["PASSING", "Call", "Client", "Link", "Source", "refused", "waits"]

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("sse_asgi")

#: A client of coredis, for a single server or a cluster.
Client: TypeAlias = "Redis[Any] | RedisCluster[Any]"

#: How a log gets its client: a URL, a client, or a function that makes one.
Source: TypeAlias = "str | Client | Callable[[], Client]"

#: Errors after which the next attempt may succeed, perhaps with another client.
PASSING = (
    redis.ConnectionError,
    redis.ReadOnlyError,  # the server has become a replica
    redis.UnblockedError,
    redis.RedisClusterError,
    redis.SentinelError,
    OSError,
)

#: The maximum number of connections of a client. Each reader holds one.
CONNECTIONS = 10_000

#: The maximum number of commands at a time. Without a free connection, each opens one.
COMMANDS = 100

#: The first wait before another attempt, and the longest, in seconds.
SHORTEST, LONGEST = 0.05, 2.0


def refused(reason: Exception) -> HubError:
    """Return the error of a command that Redis has refused."""
    error = HubError(f"Redis refused it: {reason}")
    error.__cause__ = reason
    return error


def waits() -> Iterator[float]:
    """Return the waits before further attempts, in seconds: exponential backoff with jitter."""
    for attempt in range(10**9):
        yield random.uniform(0.5, 1) * min(SHORTEST * 2 ** min(attempt, 30), LONGEST)


class Call(Generic[T]):
    """A command in progress. Several tasks may wait for its result; each may be cancelled."""

    def __init__(self) -> None:
        self.done: anyio.Event = anyio.Event()
        #: The client that is trying it now, and since when.
        self.client: Client | None = None
        self.since: float = math.inf
        self._result: T | None = None
        self._error: Exception | None = None

    def succeed(self, result: T) -> None:
        """Set the result."""
        self._result = result
        self.done.set()

    def fail(self, error: Exception) -> None:
        """Set an error, unless the command has ended."""
        if not self.done.is_set():
            self._error = error
            self.done.set()

    async def result(self) -> T:
        """Wait for the result.

        :raises Exception: the error with which the command has failed.
        """
        await self.done.wait()
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._result  # type: ignore[return-value]


class Link:
    """A connection to Redis, while :meth:`run` runs.

    A client that was lost is replaced, not used again: the pools of coredis do not recover from
    all errors, and would keep a connection on which nothing arrives any more.

    :param source: a URL, a client, or a function that makes one.
    :param timeout: for how many seconds a command is tried.
    """

    def __init__(self, source: Source, timeout: float) -> None:
        self._source: Source = _checked(source) if isinstance(source, str) else source
        self.timeout: float = timeout
        #: Whether the newest client is that of a single server.
        self.is_single: bool = False
        self._is_cluster: bool | None = None
        self._nodes: list[TCPLocation] = []  # of the cluster, as last seen
        self._tasks: TaskGroup | None = None
        self._client: Client | None = None
        self._found = anyio.Event()
        self._lost = anyio.Event()
        self._places = anyio.Semaphore(COMMANDS, fast_acquire=True)
        self._pinging: Call[object] | None = None
        #: Called after each command; ``None``: nobody wants to know.
        self.round_trip: RoundTrip | None = None
        #: Why there is no client, or why the last attempt failed.
        self._reason: BaseException = TimeoutError("no connection yet")

    @property
    def tasks(self) -> TaskGroup:
        """The task group of :meth:`run`.

        :raises HubClosedError: :meth:`run` is not running.
        """
        if self._tasks is None:
            raise HubClosedError("the hub is not open: async with hub, or lifespan=hub.lifespan")
        return self._tasks

    async def run(
        self,
        serve: Callable[[Client, TaskGroup], Coroutine[Any, Any, None]],
        task_status: TaskStatus[None],
    ) -> None:
        """Keep a client connected, until cancelled.

        :param serve: called with each new client, and a task group that is cancelled when that
            client is lost.
        """
        self._found = anyio.Event()  # of this event loop
        self._places = anyio.Semaphore(COMMANDS, fast_acquire=True)
        try:
            async with anyio.create_task_group() as self._tasks:
                task_status.started()
                pauses, level = waits(), logging.WARNING
                while True:
                    used = await self._use_one(serve)
                    if used > LONGEST:  # not after one that connects and then fails at once
                        pauses = waits()
                    if used:
                        logger.warning("the hub has lost Redis: %s", self._reason)
                    else:
                        logger.log(level, "the hub can't reach Redis: %s", self._reason)
                    level = logging.DEBUG
                    await anyio.sleep(next(pauses))
        finally:
            self._tasks = None

    async def _use_one(
        self, serve: Callable[[Client, TaskGroup], Coroutine[Any, Any, None]]
    ) -> float:
        """Connect a client, and use it until it is lost. Return for how many seconds it worked."""
        self._lost = anyio.Event()
        found = math.inf
        try:
            with anyio.fail_after(self.timeout) as scope:
                async with _opened(await self._make()) as client:
                    if isinstance(client, RedisCluster):  # entering it has connected it
                        nodes = client.connection_pool.cluster_layout.nodes
                        self._nodes = [TCPLocation(node.host, node.port) for node in nodes]
                    else:
                        await client.ping()
                    scope.deadline = math.inf
                    found = anyio.current_time()
                    self._have(client)
                    try:
                        async with anyio.create_task_group() as tasks:
                            tasks.start_soon(serve, client, tasks)
                            await self._lost.wait()
                            tasks.cancel_scope.cancel()
                    finally:
                        self._have(None)
        except Exception as exc:
            self._reason = reason = _cause(exc)
            if not str(reason):  # a TimeoutError of the deadline above
                self._reason = TimeoutError(f"no connection within {self.timeout} s")
            elif reason.__cause__ is not None:  # for example, what is wrong with a certificate
                self._reason = redis.ConnectionError(f"{reason} ({reason.__cause__})")
        return max(0.0, anyio.current_time() - found)

    def _have(self, client: Client | None) -> None:
        """Set the client that commands use."""
        self._client = client
        if client is not None:
            self.is_single = not isinstance(client, RedisCluster)
            self._found.set()
        elif self._found.is_set():
            self._found = anyio.Event()

    def blame(self, client: Client, reason: Exception) -> None:
        """Replace a client after an error, unless it recovers by itself."""
        # The client of a cluster finds out which node takes over.
        if not isinstance(client, RedisCluster):
            self.lose(client, reason)

    def lose(self, client: Client, reason: Exception) -> None:
        """Replace a client, unless it has been replaced already."""
        if client is self._client:
            self._reason = reason
            self._have(None)
            self._lost.set()

    # -- commands --------------------------------------------------------------------------------

    def start(self, command: Callable[[Client], Awaitable[T]]) -> Call[T]:
        """Start a command in a task of its own, and return it.

        The command is retried until it succeeds, for up to ``timeout`` seconds. It has its own task
        because the caller may be cancelled: if coredis is cancelled while it connects, its pool
        loses a place.

        :raises HubClosedError: :meth:`run` is not running.
        """
        call: Call[T] = Call()
        if self.round_trip is not None:
            command = partial(_measured, self.round_trip, command)
        self.tasks.start_soon(self._carry_out, command, call)
        return call

    async def ping(self) -> None:
        """Return when the server has answered."""
        if self._pinging is None or self._pinging.done.is_set():
            self._pinging = self.start(_ping)  # one for all who ask meanwhile
        await self._pinging.result()

    async def _carry_out(self, command: Callable[[Client], Awaitable[T]], call: Call[T]) -> None:
        """Try a command for ``timeout`` seconds, and set its result or error."""
        try:
            with anyio.move_on_after(self.timeout):
                await self._try(command, call)
            # Replace the client only if it had time to answer. The command may have spent most of
            # its time waiting for a client.
            if call.client is not None and anyio.current_time() > call.since + self.timeout / 2:
                self.lose(call.client, TimeoutError(f"no answer within {self.timeout} s"))
            call.fail(HubError(f"Redis did not do it within {self.timeout} s: {self._reason}"))
        finally:
            call.fail(HubClosedError("the hub was closed"))

    async def _try(self, command: Callable[[Client], Awaitable[T]], call: Call[T]) -> None:
        """Try a command until it succeeds, or until Redis refuses it."""
        for pause in waits():
            async with self._places:
                while (client := self._client) is None:
                    await self._found.wait()
                call.client, call.since = client, anyio.current_time()
                try:
                    call.succeed(await command(client))
                except PASSING as exc:
                    self._reason = exc
                    self.blame(client, exc)
                except Exception as exc:
                    # If the client has been closed meanwhile, any error may be due to that: retry.
                    if client is self._client:
                        call.fail(refused(exc))
                call.client = None
            if call.done.is_set():
                return
            await anyio.sleep(pause)

    # -- clients ---------------------------------------------------------------------------------

    async def _make(self) -> Client:
        """Make the next client."""
        if not isinstance(self._source, str):
            return self._source() if callable(self._source) else self._source
        options: dict[str, Any] = {
            "decode_components": True,  # decode a percent-encoded password
            "connect_timeout": self.timeout,
            "max_connections": CONNECTIONS,
        }
        if not self._is_cluster:
            client = Redis.from_url(self._source, retry_policy=NoRetryPolicy(), **options)
            if self._is_cluster is None:
                async with client:
                    self._is_cluster = await _is_cluster(client)
            if not self._is_cluster:
                return client
        # Begin with the nodes that are known: the node of the URL may be gone.
        url = urlsplit(self._source)
        node = TCPLocation(url.hostname or "localhost", url.port or 6379)
        return RedisCluster.from_url(
            self._source,
            startup_nodes=[*self._nodes, node],
            max_connections_per_node=True,
            skip_full_coverage_check=True,  # the check needs a command that is often forbidden
            # The client looks for nodes only before a retry.
            retry_policy=ConstantRetryPolicy(PASSING, retries=1, delay=SHORTEST),
            **options,
        )


async def _ping(client: Client) -> object:
    return await client.ping()


async def _measured(
    round_trip: RoundTrip, command: Callable[[Client], Awaitable[T]], client: Client
) -> T:
    """Carry out a command, and tell how long that took."""
    began = monotonic()
    try:
        result = await command(client)
    except BaseException as exc:
        round_trip(monotonic() - began, exc)
        raise
    round_trip(monotonic() - began, None)
    return result


def _checked(url: str) -> str:
    """Check the URL of a Redis, and return it with an option to check the name in the certificate.

    :raises ValueError: it is not the URL of a Redis. The message does not have the password.
    """
    words = "a URL of Redis begins with redis://, rediss:// or unix://, and a host"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(words) from None
    address = parts.path if parts.scheme == "unix" else parts.netloc
    if parts.scheme not in ("redis", "rediss", "unix") or not address:
        raise ValueError(words)
    options = parse_qs(parts.query)
    unchecked = options.get("ssl_cert_reqs") == ["none"] or "ssl_check_hostname" in options
    if parts.scheme == "rediss" and not unchecked:  # coredis does not check the name by default
        query = f"{parts.query}&ssl_check_hostname=true".lstrip("&")
        return parts._replace(query=query).geturl()
    return url


async def _is_cluster(client: Redis[Any]) -> bool:
    """Return whether a server is a node of a cluster."""
    with client.decoding(False):  # HELLO is never forbidden, as INFO may be
        hello: dict[Any, Any] = await client.hello(3)
    return bool(hello[b"mode"] == b"cluster")


@asynccontextmanager
async def _opened(client: Client) -> AsyncGenerator[Client, None]:
    """Open a client, and the sentinels that it uses, unless they are open already."""
    async with AsyncExitStack() as stack:
        sentinel = getattr(client.connection_pool, "sentinel_manager", None)
        if sentinel is not None and not any(map(_is_open, sentinel.sentinels)):
            await stack.enter_async_context(sentinel)
        if not _is_open(client):
            await stack.enter_async_context(client)
        yield client


def _is_open(client: Client) -> bool:
    """Return whether a client is open."""
    try:
        return client.connection_pool.task_group is not None
    except RuntimeError:
        return False


def _cause(error: BaseException) -> BaseException:
    """Return the first error of an exception group, which task groups raise."""
    while nested := getattr(error, "exceptions", None):
        error = nested[0]
    return error
