"""A primary with two replicas, watched by three sentinels."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType

from redisagg.testing.embedded import HOST, EmbeddedRedis
from tests.support.servers.polling import ask, info, wait_until

REPLICAS = 2
SENTINELS = 3
QUORUM = 2

# Seconds without an answer until a sentinel believes that a server is down. Not under 1.5: after a
# failover a sentinel takes up to one second to connect anew, and would start the next one.
DOWN_AFTER = 1.5
FAILOVER_TIMEOUT = 3.0  # seconds; a failed election is repeated after twice that


class Sentinel(EmbeddedRedis):
    """A server in sentinel mode; keeps its state in a configuration file of its own."""

    def configure(self, lines: list[str]) -> None:
        """Write the configuration file, which the sentinel itself rewrites later."""
        self._file.write_text("".join(f"{line}\n" for line in lines))

    @property
    def _file(self) -> Path:
        return self.directory / "sentinel.conf"

    def _command(self, port: int) -> list[str]:
        binary, *options = super()._command(port)
        return [binary, str(self._file), "--sentinel", *options]


class SentinelTopology:
    """A context manager around one replicated service; ready for writes when it is entered."""

    service_name = "mymaster"

    def __init__(self, binary: Path | None = None) -> None:
        replication = {"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"}
        self.servers = [EmbeddedRedis(binary, config=replication) for _ in range(1 + REPLICAS)]
        self.watchers = [Sentinel(binary) for _ in range(SENTINELS)]
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> SentinelTopology:
        with contextlib.ExitStack() as stack:
            primary, *replicas = (stack.enter_context(server) for server in self.servers)
            for replica in replicas:
                ask(replica, "REPLICAOF", HOST, primary.port)
            # A sentinel learns of the replicas from the primary's INFO; it asks at once when it
            # connects, and after that only every 10 seconds.
            wait_until(lambda: _in_sync(primary, replicas), what="the replicas are in sync")
            for watcher in self.watchers:
                watcher.configure(
                    [
                        f"sentinel monitor {self.service_name} {HOST} {primary.port} {QUORUM}",
                        f"sentinel down-after-milliseconds {self.service_name} "
                        f"{DOWN_AFTER * 1000:.0f}",
                        f"sentinel failover-timeout {self.service_name} "
                        f"{FAILOVER_TIMEOUT * 1000:.0f}",
                        f"sentinel parallel-syncs {self.service_name} {REPLICAS}",
                    ]
                )
                stack.enter_context(watcher)
            wait_until(self.is_healthy, what="the sentinels know each other and the replicas")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for server in (*self.watchers, *self.servers):
            server.kill()  # an orderly end would wait for the replicas to catch up
        self._stack.close()

    @property
    def sentinels(self) -> list[tuple[str, int]]:
        """Host and port of each sentinel, for `redis.sentinel.Sentinel`."""
        return [(HOST, watcher.port) for watcher in self.watchers]

    @property
    def primary(self) -> EmbeddedRedis:
        """The server that the first sentinel takes for the primary."""
        port = self._primary_port(self.watchers[0])
        return next(server for server in self.servers if server.port == port)

    @property
    def replicas(self) -> list[EmbeddedRedis]:
        """All servers but the primary, whether they run or not."""
        primary = self.primary
        return [server for server in self.servers if server is not primary]

    def failover(self) -> EmbeddedRedis:
        """Have the sentinels swap the primary for a replica; return the new primary when done."""
        old = self.primary

        def ordered() -> bool:
            # Refused (and so repeated) while the sentinel has no recent word from a replica.
            return bool(ask(self.watchers[0], "SENTINEL FAILOVER", self.service_name))

        wait_until(ordered, what="a sentinel takes the order to fail over")
        new = self.wait_for_failover(old)
        _demote(old, new)
        wait_until(lambda: _in_sync(new, self.replicas), what="the replicas follow the new primary")
        return new

    def kill_primary(self) -> EmbeddedRedis:
        """Kill the primary by SIGKILL and return it; `wait_for_failover` takes it from there."""
        primary = self.primary
        primary.kill()
        return primary

    def wait_for_failover(self, old: EmbeddedRedis) -> EmbeddedRedis:
        """Wait until all sentinels agree on a primary other than `old`, and return that."""

        def moved() -> bool:
            ports = {self._primary_port(watcher) for watcher in self.watchers}
            return (
                len(ports) == 1
                and old.port not in ports
                and info(self.primary, "replication")["role"] == "master"
            )

        wait_until(moved, what=f"another primary than {old}")
        return self.primary

    def heal(self) -> None:
        """Bring back every server and wait until all replicate again, as after the start."""
        primary = self.primary
        for server in (*self.watchers, *self.servers):
            server.resume()
            if not server.running:
                server.start()
                if server in self.servers and server is not primary:
                    _demote(server, primary)
        wait_until(self.is_healthy, timeout=30.0, what="the topology is whole again")

    def is_healthy(self) -> bool:
        """Whether all servers run in their roles and the sentinels see nothing wrong."""
        return _in_sync(self.primary, self.replicas) and all(map(self._is_content, self.watchers))

    def _is_content(self, watcher: Sentinel) -> bool:
        with watcher.client(decode_responses=True) as client:
            seen = client.sentinel_master(self.service_name)
        return (
            seen["flags"] in ("master", {"master"})  # text or a set, by the protocol's version
            and int(seen["num-other-sentinels"]) == SENTINELS - 1
            and int(seen["num-slaves"]) == REPLICAS
        )

    def _primary_port(self, watcher: Sentinel) -> int:
        reply = ask(watcher, "SENTINEL GET-MASTER-ADDR-BY-NAME", self.service_name)
        return int(reply[1])


def _demote(server: EmbeddedRedis, primary: EmbeddedRedis) -> None:
    """Do what the sentinels do to a former primary, but not only after 8 seconds as they."""
    ask(server, "REPLICAOF", HOST, primary.port)
    ask(server, "CLIENT KILL", "TYPE", "normal")  # so that clients look for the new primary


def _in_sync(primary: EmbeddedRedis, replicas: list[EmbeddedRedis]) -> bool:
    """Whether exactly `replicas` are attached to `primary` and have its data."""
    if info(primary, "replication")["role"] != "master":
        return False
    for replica in replicas:
        status = info(replica, "replication")
        if (
            status["role"] != "slave"
            or status["master_port"] != primary.port
            or status["master_link_status"] != "up"
        ):
            return False
    return True
