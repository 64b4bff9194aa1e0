"""Sends requests by a blocking redis-py client, from any number of threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import tenacity
from redis import BlockingConnectionPool, ConnectionPool, Redis
from redis.exceptions import ResponseError

from redisagg.errors import RedisUnavailable
from redisagg.protocol.operations import Operation
from redisagg.protocol.scripts import Request
from redisagg.transport import retrying
from redisagg.transport.causes import keep_cause
from redisagg.transport.durability import Durability
from redisagg.transport.endpoint import SyncClient, hand_bytes_only
from redisagg.transport.failures import check_connection, leads_elsewhere
from redisagg.transport.interruptions import interruption_of, raise_interruption
from redisagg.transport.nodes import Cluster, Part, route
from redisagg.transport.outages import outage_of
from redisagg.transport.round_trip import Aside, Command, pack, rules_of

T = TypeVar("T")

_NO_INTERRUPTION: dict[str, Any] = {
    "retry": tenacity.retry_if_exception(
        lambda error: retrying.may_succeed_later(error) and interruption_of(error) is None
    )
}

Replies: TypeAlias = "Callable[[], list[Any]]"
"""The second half of a round trip: waits for the replies."""


class Transport:
    """Runs operations on a blocking client.

    Args:
        client: the caller's, or one that an `Endpoint` made.
        timeout: seconds for which a round trip is retried after a lost connection.
    """

    def __init__(self, client: SyncClient, timeout: float) -> None:
        self.client = client
        self.clustered = isinstance(client, Cluster)
        self._timeout = timeout
        self._outage = outage_of(client)
        self._rules = rules_of(client)
        if not isinstance(client, Cluster):
            hand_bytes_only(client)

    def masters(self) -> list[Redis]:
        """Returns a client for each master of a cluster; without a cluster, the client itself.

        Raises:
            RedisUnavailable: no node of the cluster answers.
        """
        if not isinstance(self.client, Cluster):
            return [self.client]
        self._send_to_nodes(self.client, [], None)
        nodes = self.client.topology.nodes
        if not nodes:
            raise RedisUnavailable("no node of the cluster answers")
        return [Redis(connection_pool=self.client.pool(node)) for node in nodes]

    def once(self, operation: Operation[T]) -> T:
        """As `run`, without retries after a lost connection."""
        return self.run(operation, once=True)

    def run(self, operation: Operation[T], *, once: bool = False) -> T:
        """Runs an operation to its end and returns its result.

        Args:
            operation: what to run.
            once: whether to raise at the first lost connection.

        Raises:
            RedisUnavailable: all attempts of a round trip failed within the timeout.
            RedisAggError: the operation raised it.
        """
        try:
            requests = next(operation)
            while True:
                requests = operation.send(self.exchange(requests, once=once))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def exchange(
        self,
        requests: Sequence[Request],
        *,
        once: bool = False,
        durability: Durability | None = None,
    ) -> list[Any]:
        """Makes one round trip.

        Args:
            requests: the requests to send.
            once: whether to raise at the first lost connection.
            durability: what else to wait for behind the requests, which are script calls that may
                be repeated.

        Returns:
            A reply for each request; for one that Redis refused, the `RedisAggError` that says why.

        Raises:
            RedisUnavailable: no reply came within the timeout, or, as `NotReplicated`, too few
                replicas acknowledged.
            AuthenticationFailed: Redis refused the connection.

        What a signal handler raises meanwhile is raised as it is.
        """
        return self.begin(requests, once=once, durability=durability)()

    def begin(
        self,
        requests: Sequence[Request],
        *,
        once: bool = False,
        durability: Durability | None = None,
        repeat_until: float | None = None,
    ) -> Replies:
        """Sends the requests of a round trip, without waiting for the replies.

        Raises nothing but what a signal handler raises.

        On a cluster nothing is sent until the replies are asked for.

        Args:
            requests: as of `exchange`.
            once: as of `exchange`.
            durability: as of `exchange`.
            repeat_until: the time by `time.monotonic()` after which the requests must not be
                repeated; None if they can be at any time.

        Returns:
            A function, to be called once, that waits for the replies and returns or raises as
            `exchange`.
        """
        began = time.monotonic()
        attempt = self._attempt(requests, durability)
        sending = time.monotonic() - began

        def finish() -> list[Any]:
            since = time.monotonic() - sending  # the caller's time between the halves is not ours
            try:
                replies = attempt()
            except Exception as error:
                raise_interruption(error)
                timeout = retrying.limited(self._timeout, since, repeat_until)
                options = retrying.options_after(
                    error, timeout, since, once=once, outage=self._outage
                )
            else:
                if self._outage.since is not None:
                    self._outage.answered()
                return replies
            try:
                with self._outage.trying():
                    return tenacity.Retrying(**options | _NO_INTERRUPTION)(
                        lambda: self._attempt(requests, durability)()
                    )
            except Exception as error:
                raise_interruption(error)
                raise retrying.final_error(error, timeout) from error

        return finish

    def _attempt(self, requests: Sequence[Request], durability: Durability | None) -> Replies:
        steps = self._rules(requests)
        replies = self._send(next(steps), durability)

        def finish() -> list[Any]:
            received = replies()
            try:
                while True:
                    received = self._send(steps.send(received), durability)()
            except StopIteration as stop:
                final: list[Any] = stop.value
                return final

        return finish

    def _send(self, commands: list[Command], durability: Durability | None) -> Replies:
        if isinstance(commands, Aside):
            durability = None
        if not isinstance(self.client, Cluster):
            return _send_pipeline(self.client.connection_pool, commands, durability)
        return partial(self._send_to_nodes, self.client, commands, durability)

    def _send_to_nodes(
        self,
        cluster: Cluster[ConnectionPool],
        commands: list[Command],
        durability: Durability | None,
    ) -> list[Any]:
        """Sends each node its commands, one node after the other."""
        steps = route(cluster.topology, commands)
        try:
            parts = next(steps)
            while True:
                parts = steps.send([_send_part(cluster, part, durability) for part in parts])
        except StopIteration as stop:
            for pool in cluster.take_unused():
                _disconnect_idle(pool)
            replies: list[Any] = stop.value
            return replies


def _send_part(
    cluster: Cluster[ConnectionPool], part: Part, durability: Durability | None
) -> list[Any]:
    """Sends commands to one node; an error of the connection is the reply to each of them."""
    try:
        pool = cluster.pool(part.node)
        return _send_pipeline(pool, part.sent, durability if part.numbers else None)()
    except Exception as error:
        raise_interruption(error)
        keep_cause(error)
        return [error] * len(part.sent)


def _send_pipeline(
    pool: ConnectionPool, commands: list[Command], durability: Durability | None
) -> Replies:
    """Sends all commands at once on one connection of the pool.

    Raises nothing but what a signal handler raises.

    Returns:
        A function that reads all replies and gives the connection back, or raises the error.
    """
    if durability is not None:
        commands = [*commands, durability.command]
    try:
        connection = pool.get_connection()
    except Exception as error:
        raise_interruption(error)
        return _raising(error)
    try:
        connection.send_packed_command(pack(commands, connection))
    except Exception as error:
        _drop(pool, connection)
        raise_interruption(error)
        return _raising(error)
    except BaseException:
        _drop(pool, connection)
        raise

    def finish() -> list[Any]:
        try:
            replies = [_read(connection) for _ in commands]
            if durability is not None:
                replies = durability.check_acknowledged(replies)
        except BaseException as error:
            # Unread replies may be left. Or too few replicas acknowledged because Sentinels have
            # given them another primary: then the next connection goes there.
            _drop(pool, connection)
            if leads_elsewhere(error):
                _disconnect_idle(pool)
            raise
        pool.release(connection)
        return replies

    return finish


def _drop(pool: ConnectionPool, connection: Any) -> None:
    """Closes a connection and gives it back.

    In this order, without `finally`: if `disconnect` is interrupted, the connection may have unread
    replies, which the next call on it would take for its own. Then it must not get into the pool.
    """
    connection.disconnect()
    pool.release(connection)


def _read(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except ResponseError as error:
        check_connection(error)
        return error


def _disconnect_idle(pool: ConnectionPool) -> None:
    """Closes the idle connections of a pool, so that the next calls look up the address again."""
    if not isinstance(pool, BlockingConnectionPool):  # it can't leave out those in use
        pool.disconnect(inuse_connections=False)


def _raising(error: Exception) -> Replies:
    """Returns a function that raises an error of redis-py."""
    keep_cause(error)

    def finish() -> list[Any]:
        raise error

    return finish
