"""The way to Redis: a client, another one when that is lost, and commands that are tried again."""

from __future__ import annotations

import logging
import math
import random
from contextlib import AsyncExitStack, asynccontextmanager
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

__all__ = ["PASSING", "Call", "Client", "Link", "Source", "waits"]

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("sse_asgi")

#: A client of coredis, whatever it decodes.
Client: TypeAlias = "Redis[Any] | RedisCluster[Any]"

#: Where clients come from.
Source: TypeAlias = "str | Client | Callable[[], Client]"

#: What may go well at the next attempt, perhaps with another client.
PASSING = (
    redis.ConnectionError,
    redis.ReadOnlyError,  # it has become a replica
    redis.UnblockedError,
    redis.RedisClusterError,
    redis.SentinelError,
    OSError,
)

#: How many connections a client may have: each reader holds one.
CONNECTIONS = 10_000

#: How many commands are under way at once. Where there is no connection yet, each makes one.
COMMANDS = 100

#: The first wait before something is tried again, and the longest, in seconds.
SHORTEST, LONGEST = 0.05, 2.0


def waits() -> Iterator[float]:
    """How long to wait before each further attempt: longer and longer, and nobody in step."""
    for attempt in range(10**9):
        yield random.uniform(0.5, 1) * min(SHORTEST * 2 ** min(attempt, 30), LONGEST)


class Call(Generic[T]):
    """A command that is under way, for as many as wait for it. They may go away."""

    def __init__(self) -> None:
        self.done: anyio.Event = anyio.Event()
        #: With which it is tried now, and since when.
        self.client: Client | None = None
        self.since: float = math.inf
        self._result: T | None = None
        self._error: Exception | None = None

    def succeed(self, result: T) -> None:
        """End it."""
        self._result = result
        self.done.set()

    def fail(self, error: Exception) -> None:
        """End it, if it has not ended."""
        if not self.done.is_set():
            self._error = error
            self.done.set()

    async def result(self) -> T:
        """Wait for the end."""
        await self.done.wait()
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._result  # type: ignore[return-value]


class Link:
    """A client of Redis, for as long as :meth:`run` does.

    A client that was lost is not used again: coredis' pools do not get over everything, and a
    connection on which nothing comes back would stay in them.

    :param source: a URL, a client, or a function that makes one.
    :param timeout: for how many seconds a command is tried.
    """

    def __init__(self, source: Source, timeout: float) -> None:
        self._source: Source = _checked(source) if isinstance(source, str) else source
        self.timeout: float = timeout
        self._is_cluster: bool | None = None
        self._nodes: list[TCPLocation] = []  # of the cluster, when it was last seen
        self._tasks: TaskGroup | None = None
        self._client: Client | None = None
        self._found = anyio.Event()
        self._lost = anyio.Event()
        self._places = anyio.Semaphore(COMMANDS, fast_acquire=True)
        #: Why there is no client.
        self._reason: BaseException = TimeoutError("no connection yet")

    @property
    def tasks(self) -> TaskGroup:
        """Where what has to be done is done.

        :raises HubClosedError: it does not run.
        """
        if self._tasks is None:
            raise HubClosedError("the hub is not open: async with hub, or lifespan=hub.lifespan")
        return self._tasks

    async def run(
        self,
        serve: Callable[[Client, TaskGroup], Coroutine[Any, Any, None]],
        task_status: TaskStatus[None],
    ) -> None:
        """Have a client, until this is cancelled.

        :param serve: called with each client, and a task group that ends with that client.
        """
        self._found = anyio.Event()  # of this event loop
        self._places = anyio.Semaphore(COMMANDS, fast_acquire=True)
        try:
            async with anyio.create_task_group() as self._tasks:
                task_status.started()
                pauses, level = waits(), logging.WARNING
                while True:
                    used = await self._use_one(serve)
                    if used > LONGEST:  # else it may answer, and fail at once, again and again
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
        """Make a client, and use it until it is lost; for how many seconds it was of use."""
        self._lost = anyio.Event()
        found = math.inf
        try:
            with anyio.fail_after(self.timeout) as scope:
                async with _opened(await self._make()) as client:
                    if isinstance(client, RedisCluster):  # it has answered
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
            if not str(reason):  # a deadline's
                self._reason = TimeoutError(f"no connection within {self.timeout} s")
            elif reason.__cause__ is not None:  # what is wrong with a certificate, say
                self._reason = redis.ConnectionError(f"{reason} ({reason.__cause__})")
        return max(0.0, anyio.current_time() - found)

    def _have(self, client: Client | None) -> None:
        self._client = client
        if client is not None:
            self._found.set()
        elif self._found.is_set():
            self._found = anyio.Event()

    def blame(self, client: Client, reason: Exception) -> None:
        """Have another client instead of this one, if that can help."""
        # A cluster has other nodes, and its client finds out which one takes over.
        if not isinstance(client, RedisCluster):
            self.lose(client, reason)

    def lose(self, client: Client, reason: Exception) -> None:
        """Have another client instead of this one."""
        if client is self._client:
            self._reason = reason
            self._have(None)
            self._lost.set()

    # -- commands --------------------------------------------------------------------------------

    def start(self, command: Callable[[Client], Awaitable[T]]) -> Call[T]:
        """Start a command, in a task of its own.

        So the caller may be cancelled: coredis loses a place in its pool where a command is that
        has to connect. It is sent again until it succeeds, or for ``timeout`` seconds.
        """
        call: Call[T] = Call()
        self.tasks.start_soon(self._carry_out, command, call)
        return call

    async def _carry_out(self, command: Callable[[Client], Awaitable[T]], call: Call[T]) -> None:
        try:
            with anyio.move_on_after(self.timeout):
                await self._try(command, call)
            # One that has waited for a client for long has not given this one its time.
            if call.client is not None and anyio.current_time() > call.since + self.timeout / 2:
                self.lose(call.client, TimeoutError(f"no answer within {self.timeout} s"))
            call.fail(HubError(f"Redis did not do it within {self.timeout} s: {self._reason}"))
        finally:
            call.fail(HubClosedError("the hub was closed"))

    async def _try(self, command: Callable[[Client], Awaitable[T]], call: Call[T]) -> None:
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
                    # Whatever it says when it was closed in between is passing too.
                    if client is self._client:
                        error = HubError(f"Redis refused it: {exc}")
                        error.__cause__ = exc
                        call.fail(error)
                call.client = None
            if call.done.is_set():
                return
            await anyio.sleep(pause)

    # -- clients ---------------------------------------------------------------------------------

    async def _make(self) -> Client:
        """The client to be opened next."""
        if not isinstance(self._source, str):
            return self._source() if callable(self._source) else self._source
        options: dict[str, Any] = {
            "decode_components": True,  # what is percent-encoded in a password
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
        # The node of the URL may be gone by now.
        url = urlsplit(self._source)
        node = TCPLocation(url.hostname or "localhost", url.port or 6379)
        return RedisCluster.from_url(
            self._source,
            startup_nodes=[*self._nodes, node],
            max_connections_per_node=True,
            skip_full_coverage_check=True,  # to ask is often forbidden
            # Only what is tried again makes it look which nodes there are.
            retry_policy=ConstantRetryPolicy(PASSING, retries=1, delay=SHORTEST),
            **options,
        )


def _checked(url: str) -> str:
    """Refuse what is no URL of Redis, without its password; have the name in a certificate checked.

    :raises ValueError: it is none.
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
    if parts.scheme == "rediss" and not unchecked:  # what coredis does not do by itself
        query = f"{parts.query}&ssl_check_hostname=true".lstrip("&")
        return parts._replace(query=query).geturl()
    return url


async def _is_cluster(client: Redis[Any]) -> bool:
    with client.decoding(False):  # HELLO is never forbidden, as INFO may be
        hello: dict[Any, Any] = await client.hello(3)
    return bool(hello[b"mode"] == b"cluster")


@asynccontextmanager
async def _opened(client: Client) -> AsyncGenerator[Client, None]:
    """Open a client, and what it finds its server by, unless somebody else did."""
    async with AsyncExitStack() as stack:
        sentinel = getattr(client.connection_pool, "sentinel_manager", None)
        if sentinel is not None and not any(map(_is_open, sentinel.sentinels)):
            await stack.enter_async_context(sentinel)
        if not _is_open(client):
            await stack.enter_async_context(client)
        yield client


def _is_open(client: Client) -> bool:
    try:
        return client.connection_pool.task_group is not None
    except RuntimeError:
        return False


def _cause(error: BaseException) -> BaseException:
    """The first error of a group, which is how task groups pass them on."""
    while nested := getattr(error, "exceptions", None):
        error = nested[0]
    return error
