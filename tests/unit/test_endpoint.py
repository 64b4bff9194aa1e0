"""Redis URLs and clients as endpoints."""

from __future__ import annotations

from typing import Any

import pytest
import redis
import redis.asyncio as aio
import redis.asyncio.sentinel as aio_sentinel
from redis.sentinel import Sentinel

from redisagg import Aggregator
from redisagg.errors import InvalidConfig
from redisagg.transport.endpoint import endpoint_of, waits_without_end


def test_plain_urls() -> None:
    endpoint = endpoint_of("rediss://user:p%40ss@example.com:6380/2")
    assert endpoint.tls
    assert endpoint.options["host"] == "example.com"
    assert endpoint.options["port"] == 6380
    assert endpoint.options["password"] == "p@ss"
    assert endpoint.options["db"] == 2
    assert endpoint_of("unix:///run/redis.sock").options["path"] == "/run/redis.sock"


def test_sentinel_urls() -> None:
    endpoint = endpoint_of("redis+sentinel://u:p@one:26379,two:26380/primary/3")
    assert endpoint.service == "primary"
    assert [s["host"] for s in endpoint.sentinels] == ["one", "two"]
    assert endpoint.options == {"username": "u", "password": "p", "db": 3}


def test_cluster_urls() -> None:
    endpoint = endpoint_of("rediss+cluster://one:7000,two")
    assert endpoint.cluster == [("one", 7000), ("two", 6379)]
    assert endpoint.tls


def test_options_behind_any_url() -> None:
    for places in ("redis://one", "redis+cluster://one,two", "redis+sentinel://one/main"):
        options = endpoint_of(f"{places}?socket_timeout=3&ssl_check_hostname=no").options
        assert options["socket_timeout"] == 3
        assert options["ssl_check_hostname"] is False


def test_files_that_are_not_there() -> None:
    for url in ("rediss://one", "rediss+cluster://one"):
        with pytest.raises(InvalidConfig, match="ssl_certfile is no file: /nowhere"):
            endpoint_of(f"{url}?ssl_certfile=/nowhere")


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "a\u202eb", "\x07\x9b"])
def test_hosts_that_can_not_be_looked_up(host: str) -> None:
    for url in (f"redis://{host}", f"redis+cluster://one,{host}:1", f"redis+sentinel://{host}/x"):
        with pytest.raises(InvalidConfig, match="the name of its host is wrong"):
            endpoint_of(url)


def test_hosts_of_every_form() -> None:
    for host in ("", "127.0.0.1", "[::1]", "one.example.", "under_score", "bücher.example"):
        assert endpoint_of(f"redis://{host}:7000").options["port"] == 7000
        [(found, port)] = endpoint_of(f"redis+cluster://{host}:7000").cluster
        assert (found, port) == (host.strip("[]") or "localhost", 7000)


def test_clients_of_either_kind() -> None:
    for client in (redis.Redis(port=7, password="x"), aio.Redis(port=7, password="x")):
        options = endpoint_of(client).options
        assert (options["port"], options["password"]) == (7, "x")


class FakeRedis(redis.Redis):
    """As that of fakeredis."""

    __module__ = "fakeredis._clients._sync"


class FakeAsyncRedis(aio.Redis):
    """As that of fakeredis."""

    __module__ = "fakeredis._clients._async"


class FakeConnection(redis.Connection):
    """As that of fakeredis."""

    __module__ = "fakeredis._connection"


@pytest.mark.parametrize(
    "client",
    [
        FakeRedis(),
        type("MyRedis", (FakeRedis,), {})(),
        FakeAsyncRedis(),
        redis.Redis(connection_pool=redis.ConnectionPool(connection_class=FakeConnection)),
    ],
)
def test_clients_of_fakeredis_are_named_as_such(client: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"can't run the scripts.*redisagg\.testing"):
        endpoint_of(client)
    with pytest.raises(InvalidConfig, match=r"docs/testing\.md"):
        Aggregator("tests", client)


def test_a_url_of_no_server() -> None:
    with pytest.raises(InvalidConfig, match=r"there is no memory://.*redisagg\.testing"):
        Aggregator("tests", "memory://")


def test_an_endpoint_is_itself() -> None:
    endpoint = endpoint_of("redis://localhost:7")
    assert endpoint_of(endpoint) is endpoint


def test_a_client_behind_sentinels() -> None:
    primary = Sentinel([("one", 26379)]).master_for("main", password="x")
    endpoint = endpoint_of(primary)
    assert endpoint.service == "main"
    assert endpoint.sentinels[0]["host"] == "one"
    assert endpoint.options["password"] == "x"


def test_sentinels_with_tls_keep_it() -> None:
    for sentinel in (Sentinel, aio.Sentinel):
        over_tls = sentinel([("one", 26379)], sentinel_kwargs={"ssl": True, "ssl_ciphers": "x"})
        [found] = endpoint_of(over_tls.master_for("main")).sentinels
        assert (found["ssl"], found["ssl_ciphers"]) == (True, "x")
        [found] = endpoint_of(sentinel([("one", 26379)]).master_for("main")).sentinels
        assert found["ssl"] is False


@pytest.mark.parametrize("library", [redis, aio])
def test_clients_without_socket_timeout(library: Any) -> None:
    pool = library.ConnectionPool(socket_timeout=None)
    assert waits_without_end(library.Redis(socket_timeout=None))
    assert waits_without_end(library.Redis(connection_pool=pool))
    assert not waits_without_end(library.Redis(socket_timeout=3))
    endpoint = endpoint_of(library.Redis(socket_timeout=None))
    assert endpoint.answering_within(2).options["socket_timeout"] == 2


@pytest.mark.parametrize("sentinel", [Sentinel, aio_sentinel.Sentinel])
def test_sentinels_without_socket_timeout(sentinel: Any) -> None:
    def client(of_sentinels: float | None, of_primary: float | None) -> Any:
        return sentinel(
            [("one", 1), ("two", 2)], sentinel_kwargs={"socket_timeout": of_sentinels}
        ).master_for("main", socket_timeout=of_primary)

    assert [waits_without_end(client(*each)) for each in ((3, 3), (3, None), (None, 3))] == [
        *(False, True, True)
    ]
    endpoint = endpoint_of(client(None, 3)).answering_within(2)
    assert [each["socket_timeout"] for each in endpoint.sentinels] == [1, 1]
    assert endpoint.options["socket_timeout"] == 3
    [found] = endpoint_of("redis+sentinel://h/main").answering_within(2).sentinels
    assert found["socket_timeout"] == 2


def test_an_asyncio_client_of_a_cluster_without_socket_timeout() -> None:
    client = aio.RedisCluster(host="h", port=1, socket_timeout=None)
    assert endpoint_of(client).answering_within(2).options["socket_timeout"] == 2
