"""Adds that wait for replicas: the commands they send, and replicas that do not answer."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from redisagg import Aggregator, Policy, RedisAggError, Task
from redisagg.errors import AggregatorFull, InvalidConfig, NotReplicated, TooFewReplicas
from redisagg.protocol.keys import Keyspace, PartitionKeys
from redisagg.testing.embedded import HOST, EmbeddedRedis
from tests.support.aggregators import Make
from tests.support.proxy import running_proxy
from tests.support.servers import ClusterTopology, SentinelTopology, discover, wait_until
from tests.support.servers.polling import ask, info
from tests.support.tasks import enqueued, error_count, numbered, payloads

PATIENCE = 0.7
"""Seconds of `add_timeout`."""
WAITING: dict[str, Any] = {"min_replicas": 1, "add_timeout": PATIENCE, "replica_timeout": 0.2}
"""Where a replica is missing."""
IN_STEP: dict[str, Any] = {"min_replicas": 1, "add_timeout": 20, "replica_timeout": 5}
"""Where one follows, on a machine that may be busy: no call is repeated."""


class Pair:
    """A primary and its replica; use `running_pair`."""

    def __init__(self, primary: EmbeddedRedis, replica: EmbeddedRedis) -> None:
        self.primary = primary
        self.replica = replica

    @property
    def url(self) -> str:
        return self.primary.url

    def attach(self) -> None:
        """Has the replica follow the primary and waits until it has caught up."""
        self.replica.resume()
        ask(self.replica, "REPLICAOF", HOST, self.primary.port)
        wait_until(self._is_attached, what="the replica follows")

    def _is_attached(self) -> bool:
        ask(self.primary, "SET", "probe", "x")
        return bool(ask(self.primary, "WAIT", 1, 500) == 1)

    def calls(self, *commands: str) -> tuple[int, ...]:
        """Number of calls of each of these commands on the primary."""
        stats = info(self.primary, "commandstats")
        return tuple(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in commands)

    def count_anew(self) -> None:
        ask(self.primary, "CONFIG RESETSTAT")


@contextlib.contextmanager
def running_pair(binary: Path, config: dict[str, str] | None = None) -> Iterator[Pair]:
    """A primary and a replica, which run as long as the `with` block."""
    directives = {"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0", **(config or {})}
    with (
        EmbeddedRedis(binary, config=directives) as primary,
        EmbeddedRedis(binary, config=directives) as replica,
    ):
        pair = Pair(primary, replica)
        pair.attach()
        yield pair
        replica.kill()  # an orderly end of the primary would wait for it


@pytest.fixture(scope="module")
def _pair(server_binary: Path) -> Iterator[Pair]:
    with running_pair(server_binary) as pair:
        yield pair


@pytest.fixture
def pair(_pair: Pair) -> Pair:
    """A primary and its replica, in step and empty."""
    ask(_pair.primary, "CONFIG SET", "min-replicas-to-write", 0)
    ask(_pair.primary, "FLUSHALL")
    _pair.attach()
    return _pair


def add_patiently(agg: Any, task: Task) -> None:
    """Adds it where a replica follows that may take more than `PATIENCE` on a busy machine."""
    deadline = time.monotonic() + 30
    while True:
        try:
            assert agg.add_task(task) == task.id
        except NotReplicated:
            assert time.monotonic() < deadline
        else:
            return


every_version = pytest.mark.parametrize("binary", discover(), ids=lambda binary: binary.label)


# --- commands ------------------------------------------------------------------------------------


def test_wait_goes_out_behind_the_add_on_the_same_connection(make_both: Make, pair: Pair) -> None:
    agg = make_both(url=pair.url, **IN_STEP)
    agg.add_tasks(numbered("a", 1))  # registers, loads the script
    with pair.primary.client() as client, client.monitor() as monitor:
        agg.add_tasks(Task("test", n, f"g{n}") for n in range(20))  # in both partitions
        sent: list[tuple[str, str]] = []
        while not sent or not sent[-1][0].startswith("WAIT"):
            said = monitor.next_command()
            if said["client_type"] != "lua":
                sent.append((said["command"], said["client_port"]))
    assert [command.split(" ")[0] for command, _ in sent] == ["EVALSHA", "EVALSHA", "WAIT"]
    assert sent[-1][0] == "WAIT 1 5000"
    assert len({port for _, port in sent}) == 1


@pytest.mark.parametrize("how", ["add_task", "add_tasks"])
def test_each_round_trip_of_an_add_has_one_wait(make_both: Make, pair: Pair, how: str) -> None:
    plain, waiting = make_both(url=pair.url), make_both(url=pair.url, **IN_STEP)
    found = []
    for agg in (plain, waiting):
        agg.add_tasks(Task("test", "before", f"g{n}") for n in range(10))  # in both partitions
        pair.count_anew()
        if how == "add_task":
            for task in numbered("a", 20):
                agg.add_task(task)
        else:
            agg.add_tasks(Task("test", n, f"g{n % 10}") for n in range(5_000))
        found.append(pair.calls("evalsha", "eval", "wait"))
    calls = found[0][0]
    waits = calls if how == "add_task" else calls // 2  # a call for each of the two partitions
    assert calls >= 10
    assert found == [(calls, 0, 0), (calls, 0, waits)]


def test_adds_share_a_wait_as_they_share_the_round_trip(make_both: Make, pair: Pair) -> None:
    agg = make_both(url=pair.url, **IN_STEP)
    agg.add_tasks(Task("test", "before", f"g{n}") for n in range(10))  # in both partitions
    pair.count_anew()
    pair.replica.pause()
    with ThreadPoolExecutor(50) as pool:
        adding = [pool.submit(agg.add_task, Task("test", n, f"g{n}")) for n in range(50)]
        wait_until(
            lambda: (
                info(pair.primary, "clients")["blocked_clients"] > 0
                and all(each.running() for each in adding)
            ),
            what="all threads wait",
        )
        assert not any(each.done() for each in adding)
        pair.replica.resume()
        for each in adding:
            each.result(10)
    [waits] = pair.calls("wait")
    assert 1 <= waits <= 5
    assert agg.stats().pending == 60


# --- replicas that do not answer -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["add_task", "add_tasks"])
def test_an_add_without_replicas_raises_and_is_stored_once(
    make_both: Make, pair: Pair, how: str
) -> None:
    agg = make_both(url=pair.url, **WAITING)
    add_patiently(agg, Task("test", "before", "a"))
    task = Task("test", 1, "a")
    pair.replica.pause()
    start = time.monotonic()
    with pytest.raises(NotReplicated, match="0 of 1 replicas") as caught:
        agg.add_task(task) if how == "add_task" else agg.add_tasks([task])
    assert PATIENCE * 0.9 < time.monotonic() - start < PATIENCE + 2
    assert isinstance(caught.value, RedisAggError)
    assert agg.stats().pending == 2  # on the primary
    pair.attach()
    add_patiently(agg, task)
    assert agg.stats().pending == 2


def test_an_add_waits_for_a_replica_that_comes_back(make_both: Make, pair: Pair) -> None:
    agg = make_both(url=pair.url, **{**WAITING, "add_timeout": 10})
    add_patiently(agg, Task("test", "before", "a"))
    pair.replica.pause()
    threading.Timer(0.4, pair.replica.resume).start()
    start = time.monotonic()
    agg.add_task(Task("test", 1, "a"))
    assert time.monotonic() - start > 0.35
    assert agg.stats().pending == 2
    assert ask(pair.replica, "DBSIZE") == ask(pair.primary, "DBSIZE")


def test_all_adds_of_a_round_trip_get_the_error(make_both: Make, pair: Pair) -> None:
    agg = make_both(url=pair.url, **WAITING)
    add_patiently(agg, Task("test", "before", "a"))
    pair.replica.pause()
    with ThreadPoolExecutor(10) as pool:
        adding = [pool.submit(agg.add_task, Task("test", n, f"g{n}")) for n in range(10)]
        assert all(isinstance(each.exception(20), NotReplicated) for each in adding)


@every_version
def test_a_repeated_call_waits_for_the_writes_of_the_first_one(
    make_both: Make, binary: Any
) -> None:
    """Its connection is new, and WAIT covers only what was written on the same connection.

    (Up to Redis 7.0 it covers whatever was written before.)
    """
    with running_pair(binary.path) as pair, running_proxy(HOST, pair.primary.port) as proxy:
        agg = make_both(url=proxy.url, **WAITING)
        add_patiently(agg, Task("test", "before", "a"))
        pair.replica.pause()
        loss = proxy.lose_reply("add")
        with pytest.raises(NotReplicated):
            agg.add_task(Task("test", 1, "a"))
        loss.wait(0)
        pair.attach()
        assert agg.stats().pending == 2


@every_version
def test_an_add_of_a_task_that_waits_already_waits_for_replicas(make: Make, binary: Any) -> None:
    with running_pair(binary.path) as pair:
        first, second = make(url=pair.url), make(url=pair.url, **WAITING)
        add_patiently(second, Task("test", "before", "a"))
        task = Task("test", 1, "a")
        pair.replica.pause()
        first.add_task(task)
        with pytest.raises(NotReplicated):
            second.add_task(task)
        assert first.stats().pending == 2


@every_version
def test_a_server_with_min_replicas_to_write_refuses_and_writes_nothing(
    make: Make, binary: Any
) -> None:
    with running_pair(binary.path) as pair:
        agg = make(url=pair.url, add_timeout=PATIENCE)
        patient = make(url=pair.url, add_timeout=10)
        for each in (agg, patient):
            each.add_task(Task("test", "before", "a"))
        ask(pair.primary, "CONFIG SET", "min-replicas-to-write", 1)
        ask(pair.replica, "REPLICAOF", "NO", "ONE")
        wait_until(
            lambda: info(pair.primary, "replication")["connected_slaves"] == 0,
            what="the primary has noticed that its replica is gone",
        )
        start = time.monotonic()
        with pytest.raises(TooFewReplicas, match="NOREPLICAS"):
            agg.add_task(Task("test", 1, "a"))
        assert time.monotonic() - start > PATIENCE * 0.9
        assert patient.stats().pending == 2
        with ThreadPoolExecutor(1) as pool:
            with pair.primary.client() as client:
                refused = error_count(client, "NOREPLICAS")
                adding = pool.submit(patient.add_task, Task("test", 2, "a"))
                wait_until(
                    lambda: error_count(client, "NOREPLICAS") > refused, what="it is refused"
                )
            assert not adding.done()
            ask(pair.replica, "REPLICAOF", HOST, pair.primary.port)
            adding.result(10)
        assert agg.stats().pending == 3


@pytest.mark.parametrize("what", ["policies", "registration"])
def test_what_precedes_an_add_waits_for_no_replica(
    make_both: Make, make: Make, pair: Pair, what: str
) -> None:
    """`NotReplicated` says that the tasks are on the primary: so they have to get there."""
    agg, operator = make_both(url=pair.url, **WAITING), make(url=pair.url)
    add_patiently(agg, Task("test", "before", "a"))
    if what == "policies":
        operator.set_policy("*", Policy(max_size=7))
    else:
        ask(pair.primary, "FLUSHALL")
    pair.replica.pause()
    with pytest.raises(NotReplicated):
        agg.add_task(Task("test", 1, "a"))
    state = operator.get_group("a")
    assert state is not None
    last = list(state.tasks or ())[-1].task
    assert last is not None
    assert last.payload == 1


def test_a_refused_add_waits_for_no_replica(make_both: Make, pair: Pair) -> None:
    agg = make_both(url=pair.url, **WAITING, partitions=1, max_pending_tasks=1)
    add_patiently(agg, Task("test", "before", "a"))
    pair.replica.pause()
    with pytest.raises(AggregatorFull):
        agg.add_task(Task("test", 1, "a"))


# --- on disk -------------------------------------------------------------------------------------


def _with_waitaof() -> Path:
    """A server that has WAITAOF; skips if there is none."""
    for binary in discover():
        if binary.version >= (7, 2):
            return binary.path
    pytest.skip("no server here has WAITAOF: Redis 7.2 or newer")


@pytest.mark.parametrize("replicas", [0, 1])
def test_an_add_with_wait_for_fsync_returns_when_it_is_on_disk(make: Make, replicas: int) -> None:
    config = {"appendonly": "yes", "appendfsync": "everysec"}
    settings = {**WAITING, "min_replicas": replicas, "wait_for_fsync": True}
    with running_pair(_with_waitaof(), config) as pair:
        agg = make(url=pair.url, **{**settings, "add_timeout": 20, "replica_timeout": 3})
        hasty = make(url=pair.url, **settings)
        add_patiently(agg, Task("test", "before", "a"))
        pair.count_anew()
        took = []
        for task in numbered("a", 2):
            start = time.monotonic()
            agg.add_task(task)
            took.append(time.monotonic() - start)
        assert pair.calls("wait", "waitaof") == (0, 2)
        assert max(took) > 0.2  # the server syncs once a second
        where, what = (
            (pair.replica, "replicas have it on disk")
            if replicas
            else (
                pair.primary,
                "does not have it on disk",
            )
        )
        for server in (pair.primary, pair.replica):
            ask(server, "CONFIG SET", "appendfsync", "no" if server is where else "always")
        with pytest.raises(NotReplicated, match=what):
            hasty.add_task(Task("test", 9, "a"))


def test_wait_for_fsync_is_refused_by_a_server_without_waitaof(make: Make) -> None:
    for binary in discover():
        with EmbeddedRedis(binary.path) as server:
            agg = make(url=server.url, wait_for_fsync=True)
            start = time.monotonic()
            with pytest.raises(InvalidConfig, match=r"7\.2 or newer with appendonly yes"):
                agg.add_task(Task("test", 1, "a"))
            assert time.monotonic() - start < 3
            agg.close()


# --- through failovers ---------------------------------------------------------------------------


@pytest.mark.parametrize("by", [pytest.param("order", marks=pytest.mark.slow), "kill"])
def test_a_failover_loses_no_task_that_all_replicas_acknowledged(
    make_both: Make, sentinel: SentinelTopology, sentinel_addresses: list[tuple[str, int]], by: str
) -> None:
    places = ",".join(f"{host}:{port}" for host, port in sentinel_addresses)
    agg = make_both(
        url=f"redis+sentinel://{places}/{sentinel.service_name}",
        min_replicas=2,
        add_timeout=30,
        replica_timeout=0.5,
        group_max_size=5,
    )
    add_patiently(agg, Task("test", "before", "a"))
    done = threading.Event()
    acknowledged: list[int] = []
    errors: list[Exception] = []

    def produce(start: int) -> None:
        n = start
        while not done.is_set():
            try:
                agg.add_task(Task("test", n, f"g{n % 3}"))
                acknowledged.append(n)
            except RedisAggError as error:
                errors.append(error)
            n += 4

    with ThreadPoolExecutor(4) as pool:
        producing = [pool.submit(produce, start) for start in range(4)]

        def await_adds(count: int) -> None:
            wanted = len(acknowledged) + count
            wait_until(lambda: len(acknowledged) >= wanted, what=f"{count} more are acknowledged")

        try:
            await_adds(20)
            if by == "order":
                sentinel.failover()
            else:
                sentinel.wait_for_failover(sentinel.kill_primary())
                sentinel.heal()  # adds wait for two replicas
            await_adds(20)
        finally:
            done.set()
        for each in producing:
            each.result(40)
    assert errors == []
    with agg:
        agg.flush_all()
        assert agg.wait_until_idle(20)
    found = payloads(enqueued(agg))
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)


def test_an_add_leaves_a_primary_without_replicas_for_its_successor(
    make_both: Make, sentinel: SentinelTopology, sentinel_addresses: list[tuple[str, int]]
) -> None:
    """For some seconds after a failover an old primary still takes writes.

    Too few replicas are a reason to ask the Sentinels again.
    """
    old = sentinel.primary
    places = ",".join(f"{host}:{port}" for host, port in sentinel_addresses)
    url = f"redis+sentinel://{places}/{sentinel.service_name}"
    agg = make_both(url=url, min_replicas=1, add_timeout=20, replica_timeout=0.2)
    add_patiently(agg, Task("test", "before", "a"))
    ask(sentinel.watchers[0], "SENTINEL FAILOVER", sentinel.service_name)
    new = sentinel.wait_for_failover(old)
    wait_until(
        lambda: info(new, "replication")["connected_slaves"] == 1, what="the other one follows"
    )
    agg.add_task(Task("test", 1, "a"))
    assert info(old, "replication")["role"] == "master"  # still
    with new.client() as client:
        assert client.llen(_partition(agg, "a").tasks(b"a").decode()) == 2


# --- Redis Cluster -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replicated_cluster(server_binary: Path) -> Iterator[ClusterTopology]:
    with ClusterTopology(server_binary, replicas=1, config=_PATIENT) as topology:
        yield topology


# A replica that is paused must not be taken for dead.
_PATIENT = {"cluster-node-timeout": "3000"}


@pytest.fixture
def clustered(replicated_cluster: ClusterTopology) -> ClusterTopology:
    """A whole cluster with replicas and without data."""
    replicated_cluster.heal()
    for master in replicated_cluster.masters:
        ask(master, "FLUSHALL")
        ask(master, "CONFIG RESETSTAT")
    return replicated_cluster


def _cluster_url(cluster: ClusterTopology) -> str:
    return cluster.startup_url.replace("redis://", "redis+cluster://").removesuffix("/0")


def _waits(cluster: ClusterTopology) -> list[int]:
    """Number of WAIT calls on each master."""
    stats = [info(master, "commandstats") for master in cluster.masters]
    return [each.get("cmdstat_wait", {"calls": 0})["calls"] for each in stats]


def test_a_round_trip_to_a_cluster_has_one_wait_for_each_master(
    make_both: Make, clustered: ClusterTopology
) -> None:
    agg = make_both(url=_cluster_url(clustered), **{**IN_STEP, "partitions": 16})
    agg.add_tasks(Task("test", n, f"g{n}") for n in range(100))  # loads the scripts
    for master in clustered.masters:
        ask(master, "CONFIG RESETSTAT")
    agg.add_tasks(Task("test", n, f"g{n}") for n in range(100))
    assert _waits(clustered) == [1, 1, 1]
    for n in range(9):
        agg.add_task(Task("test", n, f"h{n}"))
    assert sum(_waits(clustered)) == 12
    assert agg.stats().pending == 209


def test_an_add_raises_only_in_partitions_whose_replica_does_not_answer(
    make_both: Make, clustered: ClusterTopology
) -> None:
    agg = make_both(url=_cluster_url(clustered), **{**WAITING, "partitions": 16, "add_timeout": 3})
    agg.add_tasks(Task("test", n, f"g{n}") for n in range(100))
    groups = {_owner(clustered, agg, f"g{n}"): f"g{n}" for n in range(40)}
    lacking, *others = clustered.masters
    [paused] = clustered.replicas_of(lacking)
    paused.pause()
    try:
        with pytest.raises(NotReplicated):
            agg.add_task(Task("test", "x", groups[lacking.port]))
        for other in others:
            agg.add_task(Task("test", "x", groups[other.port]))
    finally:
        paused.resume()
    assert agg.stats().pending == 103


def _owner(cluster: ClusterTopology, agg: Aggregator, group: str) -> int:
    """The port of the master that has the partition of a group."""
    return cluster.master_of(_partition(agg, group).state.decode()).port


def _partition(agg: Aggregator, group: str) -> PartitionKeys:
    partition, *_ = _keyspace(agg).place(group.encode())
    return partition


def _keyspace(agg: Aggregator) -> Keyspace:
    return Keyspace(agg.name, agg.config.partitions)


@pytest.mark.parametrize("how", ["add_task", "add_tasks"])
def test_adds_follow_a_slot_that_is_migrated(
    make_both: Make, clustered: ClusterTopology, how: str
) -> None:
    agg = make_both(url=_cluster_url(clustered), **{**WAITING, "partitions": 4, "add_timeout": 20})
    expected = 0

    def add() -> None:
        nonlocal expected
        tasks = [Task("test", n, f"g{n}") for n in range(expected, expected + 20)]
        if how == "add_tasks":
            agg.add_tasks(tasks)
        else:
            for task in tasks:
                agg.add_task(task)
        expected += 20
        assert agg.stats().pending == expected

    add()
    key = _keyspace(agg).partitions[0].state.decode()
    source = clustered.master_of(key)
    clustered.migrate(key, next(node for node in clustered.masters if node is not source))
    add()
    # A call with keys on both nodes is retried until the slot has moved.
    source = clustered.master_of(key)
    target = next(node for node in clustered.masters if node is not source)
    slot = ask(source, "CLUSTER KEYSLOT", key)
    ask(target, "CLUSTER SETSLOT", slot, "IMPORTING", ask(source, "CLUSTER MYID"))
    ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", ask(target, "CLUSTER MYID"))
    timer = threading.Timer(0.2, clustered.migrate, (key, target))
    timer.start()
    add()
    timer.join()


def test_an_add_waits_until_a_killed_master_is_replaced_and_has_a_replica(
    make_both: Make, clustered: ClusterTopology
) -> None:
    agg = make_both(url=_cluster_url(clustered), **{**WAITING, "partitions": 4, "add_timeout": 40})
    agg.add_tasks(Task("test", n, f"g{n}") for n in range(20))
    killed = clustered.masters[0]
    with ThreadPoolExecutor(1) as pool:
        clustered.kill(killed)
        adding = pool.submit(agg.add_tasks, [Task("test", n, f"g{n}") for n in range(20)])
        clustered.wait_for_failover(killed)
        assert not adding.done()  # its successor has no replica yet
        clustered.heal()
        adding.result(60)
    assert agg.stats().pending == 40


# --- socket_timeout ------------------------------------------------------------------------------


def test_a_socket_timeout_below_replica_timeout_is_refused(make: Make) -> None:
    url = "redis://localhost:1/?socket_timeout=1"
    make(url=url)
    with pytest.raises(InvalidConfig, match="socket_timeout"):
        make(url=url, min_replicas=1)
    with pytest.raises(InvalidConfig, match="socket_timeout"):
        make(url=redis.Redis(socket_timeout=2.0), min_replicas=1, replica_timeout=2.0)
    make(url=url, min_replicas=1, replica_timeout=0.5)


def test_a_connection_without_socket_timeout_outlasts_replica_timeout(
    pair: Pair, make_both: Make
) -> None:
    agg = make_both(url=pair.url, min_replicas=1, add_timeout=1.0, replica_timeout=1.0)
    add_patiently(agg, Task("test", "before", "a"))
    pair.replica.pause()
    with pytest.raises(NotReplicated):  # and not that nobody answered
        agg.add_task(Task("test", 1, "a"))
