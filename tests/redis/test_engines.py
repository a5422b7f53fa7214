"""Every way to a Redis: clusters, sentinels, TLS, passwords, users, sockets, databases."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import coredis
import pytest
from coredis.connection import TCPLocation

from sse_asgi import sse_app
from sse_asgi.hub import Hub, HubError, Log
from sse_asgi.hub.redis import RedisLog, runs
from sse_asgi.testing import LogContract, connect

from ..servers.harness import Certificate, make_certificate
from ..test_hub import back, gap, receive, stream_of
from .faulty_proxy import FaultyProxy
from .servers import Cluster, RedisServer, Sentinels

pytestmark = [
    pytest.mark.anyio,
    # coredis, where a connection can't be made
    pytest.mark.filterwarnings("ignore:Unclosed <Memory:ResourceWarning"),
]

#: A password that a URL can't have as it is.
PASSWORD = "p@ss:w/rd#?%40"
QUOTED = "p%40ss%3Aw%2Frd%23%3F%2540"

#: What `RedisLog` needs, for an administrator to allow.
COMMANDS = (
    "+ping +evalsha +eval +time +exists +pexpire +del +xadd +xdel +xtrim +xrange +xrevrange +xread"
    " +xinfo +zadd +zrem +zscore +zrangebyscore +zremrangebyscore"
    " +zrange +zrevrange +zrangebylex +zcard +hget +hset +hdel"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """With a password, a user who may do little, and a UNIX socket."""
    socket = tmp_path_factory.mktemp("redis") / "redis.sock"
    with RedisServer(password=PASSWORD, unixsocket=f'"{socket}"') as server:
        user = ("ACL", "SETUSER", "hub", "on", f">{PASSWORD}", "~sse_asgi:*", "-@all")
        server.command(*user, *COMMANDS.split())
        yield server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def two_hubs(source: Any, **options: Any) -> AsyncGenerator[tuple[Hub, Hub], None]:
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(
                Hub(RedisLog(source, **options), presence=True, presence_grace=0)
            )
            for _ in range(2)
        ]
        yield one, other


async def works(source: Any, **options: Any) -> None:
    """What is published at one hub reaches the other, live, again, and by a pattern."""
    async with two_hubs(source, **options) as (here, there):
        topics = [f"works/{number}" for number in range(9)]
        before = [await here.position(topic) for topic in topics]
        async with connect(stream_of(there, "works/*"), headers=back("strange")) as everything:
            await gap(everything)
            for topic, position in zip(topics, before, strict=True):
                headers = back(position)
                async with connect(stream_of(there, topic), headers=headers) as stream:
                    await here.publish(topic, topic)
                    assert await receive(stream, 1) == [topic]
                async with connect(stream_of(there, topic), headers=headers) as stream:
                    assert await receive(stream, 1) == [topic]
            assert sorted(await receive(everything, len(topics))) == topics
        async with connect(sse_app(lambda: there.presence_events("works/0"))) as events:
            assert (await events.receive()).event == "presence"
            async with connect(sse_app(lambda: there.subscribe("works/0", info="ada"))) as stream:
                assert (await events.receive()).event == "join"
                assert (await here.presence("works/0"), await here.count("works/0")) == (["ada"], 1)
                await here.disconnect("works/0", "ada", last="bye")
                assert await receive(stream, 1) == ["bye"]
            assert (await events.receive()).event == "leave"


# -- clusters --------------------------------------------------------------------------------------


class TestInACluster(LogContract):
    """Of two processes, on the same topics."""

    @pytest.fixture(autouse=True)
    def _redis(
        self, cluster: Cluster, new_prefix: Callable[[], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.url, self.new_prefix = cluster.url, new_prefix
        monkeypatch.setattr(runs, "LEASE", 2.0)

    @asynccontextmanager
    async def make_log(self, *, max_events: int, max_bytes: int) -> AsyncGenerator[Log, None]:
        yield RedisLog(
            self.url, prefix=self.new_prefix(), max_events=max_events, max_bytes=max_bytes
        )

    @asynccontextmanager
    async def make_logs(
        self, *, max_events: int, max_bytes: int
    ) -> AsyncGenerator[Sequence[Log], None]:
        prefix = self.new_prefix()
        yield [
            RedisLog(self.url, prefix=prefix, max_events=max_events, max_bytes=max_bytes)
            for _ in range(2)
        ]


async def test_a_cluster(cluster: Cluster, new_prefix: Callable[[], str]) -> None:
    """From any of its nodes, with few groups of topics and with many."""
    for node, shards in zip(cluster.primaries, (1, 16, 40), strict=True):
        await works(node.url, prefix=new_prefix(), shards=shards)


async def test_topics_are_on_all_nodes(cluster: Cluster, new_prefix: Callable[[], str]) -> None:
    prefix = new_prefix()
    log = RedisLog(cluster.url, prefix=prefix)
    async with Hub(log) as hub:
        for number in range(60):
            topic = f"t{number}"
            assert len({cluster.slot(key) for key in log.keys.of_topic(topic)}) == 1
            await hub.publish(topic, "x")
    for node in cluster.primaries:
        assert any(key.startswith(f"{prefix}:") for key in node.command("KEYS", "*"))


async def test_a_client_of_a_cluster(cluster: Cluster, new_prefix: Callable[[], str]) -> None:
    node = TCPLocation("127.0.0.1", cluster.primaries[1].port)
    prefix = new_prefix()

    def new_client() -> coredis.RedisCluster[str]:
        return coredis.RedisCluster(startup_nodes=[node], decode_responses=True)

    await works(new_client, prefix=prefix)
    async with new_client() as client:
        await works(client, prefix=new_prefix())
        assert await client.ping()


# -- sentinels -------------------------------------------------------------------------------------


async def test_sentinels(new_prefix: Callable[[], str]) -> None:
    with Sentinels() as sentinels:
        location = TCPLocation("127.0.0.1", sentinels.port)

        def sentinel() -> coredis.Sentinel[Any]:
            return coredis.Sentinel([location])

        one = sentinel()
        await works(lambda: sentinel().primary_for("main"), prefix=new_prefix())
        await works(lambda: one.primary_for("main"), prefix=new_prefix())
        async with Hub(RedisLog(one.primary_for("main"), prefix=new_prefix())) as hub:
            assert await hub.publish("t", "x")
        async with one, one.primary_for("main") as client:
            await works(client, prefix=new_prefix())
            assert await client.ping()


# -- servers ---------------------------------------------------------------------------------------


async def test_a_database_of_its_own(server: RedisServer, new_prefix: Callable[[], str]) -> None:
    prefix = new_prefix()
    await works(f"{server.url}/1", prefix=prefix)
    assert not [key for key in server.command("KEYS", "*") if key.startswith(prefix)]


async def test_a_unix_socket(server: RedisServer, new_prefix: Callable[[], str]) -> None:
    path = server.command("CONFIG", "GET", "unixsocket")[1]
    await works(f"unix://:{QUOTED}@{path}?db=2", prefix=new_prefix())


async def test_a_user_who_may_do_no_more_than_needed(
    server: RedisServer, new_prefix: Callable[[], str]
) -> None:
    url = f"redis://hub:{QUOTED}@127.0.0.1:{server.port}"
    await works(url, prefix=f"sse_asgi:{new_prefix()}")
    await works(url, prefix=f"sse_asgi:{new_prefix()}", max_age=60)
    async with Hub(RedisLog(url, prefix="other")) as hub:
        with pytest.raises(HubError, match=r"refused.*(?i:permission)"):
            await hub.publish("t", "x")


# -- TLS and passwords -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(server: RedisServer, certificate: Certificate) -> Iterator[FaultyProxy]:
    """TLS in front of the server."""
    with FaultyProxy(server.port, certificate) as proxy:
        yield proxy


async def test_tls(
    tls: FaultyProxy, certificate: Certificate, new_prefix: Callable[[], str]
) -> None:
    url = f"rediss://hub:{QUOTED}@localhost:{tls.port}/0?ssl_ca_certs={certificate.authority}"
    await works(url, prefix=f"sse_asgi:{new_prefix()}")


@pytest.mark.parametrize(
    ("host", "query", "words"),
    [
        ("localhost", "", "CERTIFICATE_VERIFY_FAILED"),
        ("localhost", "?ssl_cert_reqs=required", "CERTIFICATE_VERIFY_FAILED"),
        ("127.0.0.1", "?ssl_ca_certs={authority}", "not valid for '127.0.0.1'"),
        ("127.0.0.1", "?ssl_ca_certs={authority}&ssl_check_hostname=true", "not valid for"),
    ],
)
async def test_a_wrong_certificate_is_refused(
    tls: FaultyProxy, certificate: Certificate, host: str, query: str, words: str
) -> None:
    """One of an unknown authority, or for another name, whatever options there are."""
    query = query.format(authority=certificate.authority)
    log = RedisLog(f"rediss://:{QUOTED}@{host}:{tls.port}{query}", timeout=2)
    async with Hub(log) as hub:
        with pytest.raises(HubError, match=words):
            await hub.publish("t", "x")


@pytest.mark.parametrize("option", ["ssl_check_hostname=false", "ssl_cert_reqs=none"])
async def test_a_certificate_is_not_checked_where_that_is_asked_for(
    tls: FaultyProxy, certificate: Certificate, option: str, new_prefix: Callable[[], str]
) -> None:
    query = f"ssl_ca_certs={certificate.authority}&{option}"
    log = RedisLog(f"rediss://:{QUOTED}@127.0.0.1:{tls.port}?{query}", prefix=new_prefix())
    async with Hub(log) as hub:
        await hub.publish("t", "x")


async def test_a_wrong_password_is_said_but_not_shown(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    log = RedisLog(f"redis://:secret@127.0.0.1:{server.port}", timeout=2)
    async with Hub(log) as hub:
        with pytest.raises(HubError, match=r"(?i)password") as raised:
            await hub.publish("t", "x")
        shown = [repr(log), repr(hub), str(raised.value), repr(raised.value), caplog.text]
        assert not any("secret" in text for text in shown)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.name for record in warnings] == ["sse_asgi"]  # once, not at each attempt


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "redis:/localhost",
        "http://h",
        "redis://h:port",
        "unix://",
        "redis://[",
    ],
)
def test_what_is_no_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="begins with redis://"):
        RedisLog(url)


@pytest.mark.parametrize("source", ["http://:secret@h", b"redis://:secret@h"])
def test_a_password_is_not_shown_where_it_is_refused(source: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        RedisLog(source)
    assert "secret" not in str(raised.value)


async def test_a_user_of_a_cluster_who_may_not_ask_for_information(
    cluster: Cluster, new_prefix: Callable[[], str]
) -> None:
    """It is found to be a cluster all the same."""
    for node in cluster.primaries:
        user = ("ACL", "SETUSER", "hub", "on", ">secret", "~test:*", "-@all", "+cluster")
        node.command(*user, *COMMANDS.split())
    await works(f"redis://hub:secret@127.0.0.1:{cluster.primaries[0].port}", prefix=new_prefix())
