"""What the blocking and the asyncio aggregator have in common: names, settings, endpoint."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace

from redisagg.config import AggregationConfig, GroupAggregator
from redisagg.durations import Duration, seconds, to_ms
from redisagg.errors import InvalidConfig, NamespaceMismatch
from redisagg.protocol.entries import Encoder
from redisagg.protocol.keys import SCHEMA, Keyspace
from redisagg.protocol.operations import Operation, ask
from redisagg.protocol.scripts import call
from redisagg.sinks import Sink, StreamSink, sink_from_url
from redisagg.sinks.routing import Route, check_sink
from redisagg.task import GroupKey, group_key_text
from redisagg.transport.durability import Durability
from redisagg.transport.endpoint import AnyClient, Endpoint, endpoint_of

# By how much a server may overdo a timeout, seconds: it looks at the time ten times a second.
_COARSE = 0.2


@dataclass(frozen=True, slots=True)
class Namespace:
    """One aggregator's settings, checked."""

    keyspace: Keyspace
    config: AggregationConfig
    sink: Sink | Route
    endpoint: Endpoint
    encoder: Encoder

    @classmethod
    def make(
        cls,
        name: str,
        redis: AnyClient,
        config: AggregationConfig | None,
        sink: Sink | Route | str | None,
    ) -> Namespace:
        """Checks the arguments of an aggregator.

        Raises:
            InvalidConfig: one of them is out of range or of the wrong type.
        """
        if config is None:
            config = AggregationConfig()
        if not isinstance(config, AggregationConfig):
            raise InvalidConfig(f"config is an AggregationConfig, not {type(config).__name__}")
        if sink is None:
            sink = StreamSink(f"{name}-batches")
        elif isinstance(sink, str):
            sink = sink_from_url(sink)
        if config.executor == "process":
            _check_pickles(config.group_aggregator, sink)
        keyspace = Keyspace(name, config.partitions)
        endpoint = endpoint_of(redis)
        _check_patience(endpoint, config)
        return cls(keyspace, config, check_sink(sink), endpoint, Encoder(config))

    def with_concurrency(self, concurrency: int | None) -> Namespace:
        """The same with another number of merges at the same time, if one is given."""
        if concurrency is None:
            return self
        return replace(self, config=replace(self.config, concurrency=concurrency))

    def producer_endpoint(self) -> Endpoint:
        """Redis for callers, who wait for `add_timeout` at most."""
        patience = _answer_within(self.config.add_timeout)
        if self.config.waits_for_replicas:
            # Silence for so long is no sign of a dead connection.
            patience += seconds(self.config.replica_timeout) + _COARSE
        return self.endpoint.answering_within(patience)

    def flusher_endpoint(self) -> Endpoint:
        """Redis for flushers, who would lose their leases with a connection that is dead."""
        return self.endpoint.answering_within(_answer_within(self.config.lease_time))

    @property
    def durability(self) -> Durability | None:
        """What adds wait for besides the primary's reply; None for nothing."""
        config = self.config
        if not config.waits_for_replicas:
            return None
        return Durability(config.min_replicas, config.wait_for_fsync, to_ms(config.replica_timeout))

    def register(self) -> Operation[None]:
        """Records the namespace at its first use, and compares what is recorded with the settings.

        Raises:
            NamespaceMismatch: they differ.
        """
        found = yield from ask(
            call("register", [self.keyspace.meta], SCHEMA, len(self.keyspace.partitions))
        )
        schema, partitions = map(int, found)
        name = self.keyspace.name
        if schema != SCHEMA:
            raise NamespaceMismatch(
                f"the namespace {name!r} has key schema {schema}, this version of redisagg has "
                f"{SCHEMA}; use the version of redisagg that the other nodes use"
            )
        if partitions != self.config.partitions:
            raise NamespaceMismatch(
                f"the namespace {name!r} was created with {partitions} partitions, not "
                f"{self.config.partitions}; set partitions={partitions}, or use another name"
            )


def _check_pickles(function: GroupAggregator, sink: Sink | Route) -> None:
    """Raises `InvalidConfig` unless worker processes can be given both."""
    try:
        pickle.dumps((function, sink))
    except Exception as error:  # whatever the objects themselves raise
        raise InvalidConfig(
            "executor='process' hands the merge function and the sink to other processes by "
            f"pickle, so both have to be importable: {error}"
        ) from error


def _check_patience(endpoint: Endpoint, config: AggregationConfig) -> None:
    """Raises `InvalidConfig` if connections are given up while the server waits for replicas."""
    timeout = endpoint.options.get("socket_timeout")
    if config.waits_for_replicas and timeout is not None:
        waits = seconds(config.replica_timeout)
        if float(timeout) <= waits + _COARSE:
            raise InvalidConfig(
                f"the socket_timeout of the Redis URL or client, {timeout} seconds, must be longer "
                f"than replica_timeout, {waits:g} seconds, by more than {_COARSE:g}"
            )


def _answer_within(time_left: Duration) -> float:
    """After how many seconds a silent connection is taken for dead: while there is still time to
    repeat the call on a new one."""
    return min(seconds(time_left) / 3, 5.0)


def group_bytes(group_key: GroupKey) -> bytes:
    """A group key as it is in Redis; raises `InvalidGroupKey`."""
    return group_key_text(group_key).encode()
