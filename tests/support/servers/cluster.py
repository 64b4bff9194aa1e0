"""A Redis cluster of any small size."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from redisagg.testing.embedded import HOST, EmbeddedRedis
from tests.support.servers.polling import ask, info, wait_until

SLOTS = 16_384
NODE_TIMEOUT = 1.0  # seconds without an answer until a node counts as failing
MIGRATE_TIMEOUT_MS = 5000  # what moving some keys of a slot may take


_FAILOVER_AGAIN = 6.0  # seconds until a failover is ordered again; an order lasts for 5


class ClusterTopology:
    """A context manager around a cluster; ready for writes when it is entered.

    `config` holds directives for every node, e.g. `{"cluster-require-full-coverage": "no"}`.
    """

    def __init__(
        self,
        binary: Path | None = None,
        *,
        masters: int = 3,
        replicas: int = 0,
        config: Mapping[str, str] | None = None,
    ) -> None:
        self.masters_count = masters
        directives = {
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": f"{NODE_TIMEOUT * 1000:.0f}",
            "cluster-replica-validity-factor": "0",  # a replica stands in however old its data
            "repl-diskless-sync": "yes",
            "repl-diskless-sync-delay": "0",
            **(config or {}),
        }
        count = masters * (1 + replicas)
        self.nodes = [EmbeddedRedis(binary, config=directives) for _ in range(count)]
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> ClusterTopology:
        with contextlib.ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            self._create()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for node in self.nodes:
            node.kill()  # an orderly end would wait for the replicas to catch up
        self._stack.close()

    @property
    def startup_url(self) -> str:
        """The URL of a running node, from which a client finds all others."""
        return next(node for node in self.nodes if node.running).url

    @property
    def masters(self) -> list[EmbeddedRedis]:
        """The running nodes that are masters."""
        return [node for node in self.nodes if node.running and _role(node) == "master"]

    def replicas_of(self, master: EmbeddedRedis) -> list[EmbeddedRedis]:
        """The running replicas of `master`."""
        return [node for node in self.nodes if node.running and _master_port(node) == master.port]

    def master_of(self, key: str) -> EmbeddedRedis:
        """The master that holds the slot of `key`."""
        asked = next(node for node in self.nodes if node.running)
        slot = int(ask(asked, "CLUSTER KEYSLOT", key))
        return next(node for node in self.masters if slot in _own_slots(node))

    def kill(self, node: EmbeddedRedis) -> None:
        """Kill `node` by SIGKILL."""
        node.kill()

    def failover(self, master: EmbeddedRedis) -> EmbeddedRedis:
        """Swap a running `master` for one of its replicas; return that when all nodes know."""
        replica = self.replicas_of(master)[0]
        # A replica that does not get the votes gives up; one that still tries refuses the order.
        asked_at = -math.inf

        def failed_over() -> bool:
            nonlocal asked_at
            if self._has_failed_over(master):
                return True
            if time.monotonic() - asked_at > _FAILOVER_AGAIN:
                asked_at = time.monotonic()
                ask(replica, "CLUSTER FAILOVER")
            return False

        wait_until(failed_over, timeout=40, what=f"{replica} has replaced {master}")
        return replica

    def migrate(self, key: str, target: EmbeddedRedis) -> None:
        """Move the slot of `key` with all its keys to the master `target`, while clients go on."""
        source = self.master_of(key)
        slot = int(ask(source, "CLUSTER KEYSLOT", key))
        source_id, target_id = ask(source, "CLUSTER MYID"), ask(target, "CLUSTER MYID")
        ask(target, "CLUSTER SETSLOT", slot, "IMPORTING", source_id)
        ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", target_id)

        def moved() -> bool:
            names = ask(source, "CLUSTER GETKEYSINSLOT", slot, 100)
            move = ("MIGRATE", HOST, target.port, "", 0, MIGRATE_TIMEOUT_MS, "KEYS", *names)
            if names:
                ask(source, *move)
            return not names

        # Until it is done: a slot that is left half moved, as when the target is out of memory for
        # a while, serves nobody.
        wait_until(moved, what=f"all keys of slot {slot} are at {target}")
        # The target first: a source that has handed over sends clients there.
        for node in (target, source, *(set(self.masters) - {source, target})):
            ask(node, "CLUSTER SETSLOT", slot, "NODE", target_id)
        # Replicas hear of it from their masters; one that does not know would not stand in for it.
        wait_until(
            lambda: all(slot in _slots_of(node, target_id) for node in self.nodes if node.running),
            what=f"all nodes know that slot {slot} is at {target}",
        )

    def wait_for_failover(self, old: EmbeddedRedis) -> None:
        """Wait until `old` is no master any more and the rest of the cluster takes writes."""
        wait_until(
            lambda: self._has_failed_over(old),
            what=f"the cluster works with another master than {old}",
        )

    def _has_failed_over(self, old: EmbeddedRedis) -> bool:
        return (
            old not in (masters := self.masters)
            and len(masters) == self.masters_count
            and all(map(_is_ok, filter(lambda node: node.running, self.nodes)))
        )

    def heal(self) -> None:
        """Bring back every node and wait until the cluster is whole again."""
        for node in self.nodes:
            node.resume()
            node.start()
        wait_until(self.is_healthy, timeout=30.0, what="the cluster is whole again")

    def is_healthy(self) -> bool:
        """Whether all slots are served and all nodes see all others working."""
        return (
            # A master that comes back takes itself for one until it hears of its successor.
            len(self.masters) == self.masters_count
            and all(map(_is_ok, self.nodes))
            and all(_known_nodes(node) == len(self.nodes) for node in self.nodes)
        )

    def _create(self) -> None:
        first = self.nodes[0]
        masters = self.nodes[: self.masters_count]
        for epoch, node in enumerate(self.nodes, start=1):
            # Equal epochs would be settled by the nodes themselves, one by one.
            ask(node, "CLUSTER SET-CONFIG-EPOCH", epoch)
        for number, node in enumerate(masters):
            low, high = (SLOTS * n // len(masters) for n in (number, number + 1))
            ask(node, "CLUSTER ADDSLOTS", *range(low, high))
        for node in self.nodes[1:]:
            ask(node, "CLUSTER MEET", HOST, first.port)
        wait_until(
            lambda: all(_known_nodes(node) == len(self.nodes) for node in self.nodes),
            what="all nodes have met",
        )
        for number, node in enumerate(self.nodes[self.masters_count :]):
            master_id = ask(masters[number % len(masters)], "CLUSTER MYID")
            ask(node, "CLUSTER REPLICATE", master_id)
        wait_until(self.is_healthy, what="the new cluster takes writes")


def _role(node: EmbeddedRedis) -> str:
    return str(info(node, "replication")["role"])


def _master_port(node: EmbeddedRedis) -> int | None:
    port: int | None = info(node, "replication").get("master_port")
    return port


def _is_ok(node: EmbeddedRedis) -> bool:
    """Whether `node` holds the cluster for complete and, as a replica, follows its master."""
    state = ask(node, "CLUSTER INFO")
    link = info(node, "replication").get("master_link_status", "up")
    return (
        state["cluster_state"] == "ok" and int(state["cluster_slots_ok"]) == SLOTS and link == "up"
    )


def _known_nodes(node: EmbeddedRedis) -> int:
    """How many nodes `node` knows and sees working, itself included."""
    known = ask(node, "CLUSTER NODES")
    return sum(
        entry["connected"] and not {"handshake", "fail", "fail?"} & set(entry["flags"].split(","))
        for entry in known.values()
    )


def _own_slots(node: EmbeddedRedis) -> set[int]:
    return _slots_of(node, ask(node, "CLUSTER MYID"))


def _slots_of(asked: EmbeddedRedis, node_id: str) -> set[int]:
    """The slots of a node as the node `asked` sees them."""
    known = ask(asked, "CLUSTER NODES")
    entry = next(entry for entry in known.values() if entry["node_id"] == node_id)
    ranges = (tuple(map(int, (bounds[0], bounds[-1]))) for bounds in entry["slots"])
    return {slot for low, high in ranges for slot in range(low, high + 1)}
