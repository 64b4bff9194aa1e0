"""A namespace: the checked arguments of an aggregator, and its record in Redis."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from typing import TypeVar

from redisagg.config import AggregationConfig, GroupAggregator
from redisagg.durations import Duration, seconds, to_ms
from redisagg.errors import InvalidConfig, NamespaceMismatch
from redisagg.merges import collect
from redisagg.observers import Observers
from redisagg.protocol import registration
from redisagg.protocol.clock import RedisClock
from redisagg.protocol.entries import EncodedTask, Encoder, mark_submitted
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.operations import Operation, ask
from redisagg.protocol.scripts import command
from redisagg.sinks import Sink, StreamSink, sink_from_url
from redisagg.sinks.routing import Route, check_sink
from redisagg.texts import logger
from redisagg.transport.durability import Durability
from redisagg.transport.endpoint import AnyClient, Endpoint, endpoint_of

_log = logger("namespace")

# Seconds by which a server may exceed a timeout, since it checks timeouts ten times a second.
_TIMEOUT_SLACK = 0.2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Namespace:
    """The checked arguments of an aggregator."""

    keyspace: Keyspace
    config: AggregationConfig
    sink: Sink | Route
    endpoint: Endpoint
    encoder: Encoder
    clock: RedisClock
    """What the encoder knows of the time of Redis."""
    observers: Observers

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
            InvalidConfig: an argument is out of range or of the wrong type.
            SinkError: the sink's URL needs a package that is not installed.
        """
        if config is None:
            config = AggregationConfig()
        if not isinstance(config, AggregationConfig):
            raise InvalidConfig(f"config must be an AggregationConfig, not {type(config).__name__}")
        if sink is None:
            sink = StreamSink(f"{name}-batches")
        elif isinstance(sink, str):
            sink = sink_from_url(sink)
        if config.executor == "process":
            _check_pickles(config.group_aggregator, sink)
        keyspace = Keyspace(name, config.partitions)
        endpoint = endpoint_of(redis)
        _check_socket_timeout(endpoint, config)
        # Another merge function may make something else of the payloads.
        unchanged = config.group_aggregator is collect
        json = isinstance(sink, Sink) and sink.takes_json and unchanged
        clock = RedisClock(keyspace)
        encoder = Encoder(config, json=json, now_ms=clock.now_ms)
        observers = Observers(config.on_event, config.event_kinds)
        return cls(keyspace, config, check_sink(sink), endpoint, encoder, clock, observers)

    def with_concurrency(self, concurrency: int | None) -> Namespace:
        """Returns the namespace with another `concurrency`; None leaves it as it is."""
        if concurrency is None:
            return self
        return replace(self, config=replace(self.config, concurrency=concurrency))

    def producer_endpoint(self) -> Endpoint:
        """Returns the endpoint for producers, whose calls take at most `add_timeout`."""
        timeout = _socket_timeout(self.config.add_timeout)
        if self.config.waits_for_replicas:
            # While it waits for replicas, a server that lives is silent.
            timeout += seconds(self.config.replica_timeout) + _TIMEOUT_SLACK
        return self.endpoint.answering_within(timeout)

    def flusher_endpoint(self, lease_time: float | None = None) -> Endpoint:
        """Returns the endpoint for flushers, whose leases expire while a connection is dead.

        Args:
            lease_time: the shortest lease time of those that use it, in seconds; None for that of
                the namespace.
        """
        return self.endpoint.answering_within(_socket_timeout(lease_time or self.config.lease_time))

    @property
    def durability(self) -> Durability | None:
        """The acknowledgements that adds wait for besides the primary's reply; None for none."""
        config = self.config
        if not config.waits_for_replicas:
            return None
        return Durability(config.min_replicas, config.wait_for_fsync, to_ms(config.replica_timeout))

    def submitted(self, task: EncodedTask) -> EncodedTask:
        """Marks a packed task, so that its outcome is kept for `result_ttl`."""
        return mark_submitted(task, to_ms(self.config.result_ttl))

    def register(self) -> Operation[None]:
        """Records the namespace at its first use; later compares the record with the settings.

        Raises:
            NamespaceMismatch: the record has another key schema or number of partitions.
            KeyConflict: the record holds a value that redisagg did not write.
        """
        while True:
            try:
                yield from registration.register(self.keyspace)
                return
            except registration.NamespaceMoved as moved:
                self.follow(moved)

    def follow(self, moved: registration.NamespaceMoved) -> None:
        """Has all that share this namespace use the layout that it has now."""
        if self.keyspace.layout != moved.layout:
            _log.warning("%s; this process follows", moved)
            self.keyspace.become(moved.layout)

    def note_refusal(self, error: NamespaceMismatch) -> Operation[None]:
        """Notes in Redis why a flusher of this host can't run, for those who look."""
        yield from registration.note_refusal(self.keyspace, error)

    def check(self) -> Operation[bool]:
        """Compares the record of the namespace with the settings, and writes nothing.

        Follows the namespace if it was moved.

        Returns:
            False if the namespace has no record: it does not exist yet.

        Raises:
            NamespaceMismatch: the record has another key schema or number of partitions.
            KeyConflict: the record holds a value that redisagg did not write.
        """
        while True:
            try:
                return (yield from registration.check(self.keyspace))
            except registration.NamespaceMoved as moved:
                self.follow(moved)

    def checked(self, operation: Operation[T]) -> Operation[T]:
        """Runs an operation; compares the record as `check` in its first round trip.

        An aggregator lives for a long time, and the namespace may be created anew meanwhile. If it
        was moved, the next operation finds it.

        Raises:
            NamespaceMismatch, KeyConflict: as `check`. The first requests have been carried out.
                A record that can't be read is ignored: it does not stop those who run.
        """
        layout = self.keyspace.layout
        try:
            requests = next(operation)
            found, *replies = yield [registration.record(self.keyspace), *requests]
            if self.keyspace.layout != layout:  # another thread has followed it
                raise registration.NamespaceMoved(
                    self.keyspace.layout, f"the namespace {layout.name!r} was just moved"
                )
            if not isinstance(found, Exception) and None not in found:
                yield from registration.compare(self.keyspace, found)
            while True:
                requests = operation.send(replies)
                replies = yield requests
        except StopIteration as stop:
            result: T = stop.value
            return result


def recorded_partitions(name: str) -> Operation[int | None]:
    """Reads the number of partitions of a namespace; None if the namespace is new.

    That of one that was moved is the number of before: who uses it follows.

    Raises:
        InvalidConfig: the name has another form than `Keyspace` takes.
        KeyConflict: the record holds a value that redisagg did not write.
    """
    keyspace = Keyspace(name, 1)
    # HMGET, since the roles of docs/security.md may not run HGET on this key.
    [recorded] = yield from ask(command("HMGET", keyspace.meta, b"partitions"))
    return None if recorded is None else registration.recorded_number(keyspace.meta, recorded)


def _check_pickles(function: GroupAggregator, sink: Sink | Route) -> None:
    """Raises `InvalidConfig` unless both can be sent to worker processes."""
    try:
        pickle.dumps((function, sink))
    except Exception as error:  # the objects' own methods may raise errors of any class
        raise InvalidConfig(
            "executor='process' sends the merge function and the sink to worker processes by "
            f"pickle, which failed: {error}; define both at the top level of a module"
        ) from error


def _check_socket_timeout(endpoint: Endpoint, config: AggregationConfig) -> None:
    """Raises `InvalidConfig` if connections time out while the server waits for replicas."""
    timeout = endpoint.options.get("socket_timeout")
    if config.waits_for_replicas and timeout is not None:
        waits = seconds(config.replica_timeout)
        if float(timeout) <= waits + _TIMEOUT_SLACK:
            raise InvalidConfig(
                f"the socket_timeout of the Redis URL or client, {timeout} seconds, must be longer "
                f"than replica_timeout, {waits:g} seconds, by more than {_TIMEOUT_SLACK:g}"
            )


def _socket_timeout(time_left: Duration) -> float:
    """Returns the seconds of silence after which a connection counts as dead.

    A third of the time left, so that the call can be repeated on a new connection.
    """
    return min(seconds(time_left) / 3, 5.0)
