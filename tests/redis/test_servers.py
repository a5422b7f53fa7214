"""What tests with Redis rely on: that servers and connections fail as they are told to."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..servers.clients import wait_for
from ..servers.harness import make_certificate
from .faulty_proxy import FaultyProxy, Moment
from .servers import Cluster, Connection, RedisServer, ReplyError, Sentinels


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[FaultyProxy]:
    server.command("FLUSHALL")
    with FaultyProxy(server.port) as proxy:
        yield proxy


def test_replies(server: RedisServer) -> None:
    with server.connect() as connection:
        assert connection.command("SET", "text", "é\r\n") == "OK"
        assert connection.command("GET", "text") == "é\r\n"
        assert connection.command("GET", "nothing") is None
        assert connection.command("MULTI") == "OK"
        assert connection.command("LPUSH", "text", 1) == "QUEUED"
        assert connection.command("STRLEN", "text") == "QUEUED"
        error, length = connection.command("EXEC")
        assert (type(error), length) == (ReplyError, 4)
        with pytest.raises(ReplyError, match="ERR"):
            connection.command("NONSENSE")
        assert server.calls("strlen") == 1


def test_what_comes_back() -> None:
    with RedisServer(appendonly="yes", appendfsync="always", password="a secret") as server:
        port = server.port
        server.command("SET", "old", 1)
        snapshot = server.snapshot()
        server.command("SET", "new", 1)
        server.kill()
        server.start()
        assert server.command("DBSIZE") == 2
        server.stop()
        server.restore(snapshot)
        server.start()
        assert server.command("KEYS", "*") == ["old"]
        server.kill()
        server.wipe()
        server.start()
        assert server.command("DBSIZE") == 0
        assert server.port == port
        with Connection(port) as stranger, pytest.raises(ReplyError, match="NOAUTH"):
            stranger.command("DBSIZE")


def test_what_comes_back_without_persistence() -> None:
    with RedisServer() as server:
        server.command("SET", "old", 1)
        snapshot = server.snapshot()
        server.stop()
        server.wipe()
        server.start()
        assert server.command("DBSIZE") == 0
        server.kill()
        server.restore(snapshot)
        server.start()
        assert server.command("KEYS", "*") == ["old"]


def test_full_memory() -> None:
    with RedisServer(maxmemory="8mb") as server:
        with pytest.raises(ReplyError, match="OOM"):
            for number in range(100):
                server.command("SET", number, "x" * 1_000_000)


def test_pause(server: RedisServer) -> None:
    server.pause()
    try:
        with server.connect() as connection:
            connection.socket.settimeout(0.1)
            with pytest.raises(TimeoutError):
                connection.command("PING")
    finally:
        server.resume()
    assert server.command("PING") == "PONG"


@pytest.mark.parametrize(("moment", "done"), [("before", 0), ("within", 0), ("after", 1)])
def test_a_command_that_is_cut(
    proxy: FaultyProxy, server: RedisServer, moment: Moment, done: int
) -> None:
    with Connection(proxy.port) as connection, Connection(proxy.port) as other:
        assert other.command("PING") == "PONG"
        assert connection.command("PING") == "PONG"
        proxy.cut_at("incr", moment)
        with pytest.raises(ConnectionResetError):
            connection.command("INCRBY", "n", 1)
        assert int(server.command("GET", "n") or 0) == done
        assert other.command("INCR", "n") == done + 1
    assert proxy.cuts == 1
    assert proxy.connections == 2
    wait_for(lambda: proxy.open == 0, lambda: proxy.open)


def test_all_connections_are_cut(proxy: FaultyProxy) -> None:
    with Connection(proxy.port) as one, Connection(proxy.port) as other:
        assert (one.command("PING"), other.command("PING")) == ("PONG", "PONG")
        proxy.cut()
        for connection in (one, other):
            with pytest.raises(ConnectionError):
                connection.receive()
    with Connection(proxy.port) as another:
        assert another.command("PING") == "PONG"


def test_new_connections_are_refused(proxy: FaultyProxy) -> None:
    with Connection(proxy.port) as connection:
        assert connection.command("PING") == "PONG"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            Connection(proxy.port)
        assert connection.command("PING") == "PONG"
    proxy.resume()
    with Connection(proxy.port) as connection:
        assert connection.command("PING") == "PONG"


def test_silence(proxy: FaultyProxy) -> None:
    with Connection(proxy.port) as connection:
        assert connection.command("PING") == "PONG"
        proxy.silence()
        with Connection(proxy.port) as other:
            for silent in (connection, other):
                silent.socket.settimeout(0.1)
                silent.send("INCR", "n")
                with pytest.raises(TimeoutError):
                    silent.socket.recv(1)
                silent.socket.settimeout(None)
            proxy.resume()
            assert {connection.socket.recv(9), other.socket.recv(9)} == {b":1\r\n", b":2\r\n"}


def test_delay(proxy: FaultyProxy) -> None:
    with Connection(proxy.port) as connection:
        proxy.delay(0.2)
        connection.send("PING")
        connection.socket.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.socket.recv(1)
        connection.socket.settimeout(None)
        assert connection.socket.recv(9) == b"+PONG\r\n"


def test_tls(server: RedisServer, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with FaultyProxy(server.port, certificate) as proxy:
        assert proxy.url.startswith("rediss://localhost:")
        with Connection(proxy.port, tls=certificate.client) as connection:
            assert connection.command("PING") == "PONG"
            proxy.cut()
            with pytest.raises(ConnectionError):
                connection.receive()
        with pytest.raises(ssl.SSLCertVerificationError):
            Connection(proxy.port, tls=ssl.create_default_context())


def test_a_cluster() -> None:
    with Cluster(replicas=True) as cluster:
        number = cluster.primary_of("key")
        cluster.primaries[number].command("SET", "key", "value")
        with pytest.raises(ReplyError, match="MOVED"):
            cluster.primaries[number - 1].command("GET", "key")
        for kill in (False, True):
            old, new = cluster.primaries[number], cluster.replicas[number]
            cluster.fail_over(number, kill=kill)
            assert (cluster.primaries[number], cluster.replicas[number]) == (new, old)
            assert new.command("GET", "key") == "value"
        old.start()
        cluster.wait()
        assert old.info("replication")["master_port"] == str(new.port)


def test_sentinels() -> None:
    with Sentinels(password="a secret") as sentinels:
        sentinels.primary.command("SET", "key", "value")
        for _ in range(2):
            new = sentinels.replica
            sentinels.fail_over()
            assert sentinels.primary is new
            assert new.command("GET", "key") == "value"
            sentinels.bring_back()
