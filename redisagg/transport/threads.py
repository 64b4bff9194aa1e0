"""Requests over a blocking redis-py client, from any number of threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import tenacity
from redis import ConnectionPool, Redis, RedisCluster
from redis.exceptions import ResponseError

from redisagg.protocol.operations import Operation
from redisagg.protocol.scripts import Request
from redisagg.transport import retrying
from redisagg.transport.durability import NO_NODE, Durability, by_node, is_redirect, try_again
from redisagg.transport.failures import check_role, is_transient
from redisagg.transport.rounds import RAW, Command, pack, round_trip

T = TypeVar("T")

Replies: TypeAlias = "Callable[[], list[Any]]"
"""The second half of a round trip: waits for the replies."""


class Transport:
    """Runs operations on a blocking client.

    Args:
        client: the caller's, or one that an `Endpoint` made.
        timeout: seconds for which lost connections are ridden out.
    """

    def __init__(self, client: Redis | RedisCluster, timeout: float) -> None:
        self.client = client
        self.clustered = isinstance(client, RedisCluster)
        self._timeout = timeout

    def run(self, operation: Operation[T]) -> T:
        """Runs an operation to its end and returns its result.

        Raises:
            RedisUnavailable: a round trip failed for the whole timeout.
            RedisAggError: whatever the operation raises.
        """
        return self._run(operation, once=False)

    def once(self, operation: Operation[T]) -> T:
        """As `run`, but a lost connection is not ridden out."""
        return self._run(operation, once=True)

    def _run(self, operation: Operation[T], *, once: bool) -> T:
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
        """One round trip; a request that Redis refused has one of our errors for its reply.

        Args:
            requests: what to send.
            once: whether to raise at the first lost connection.
            durability: what else to wait for; for calls of scripts that may be repeated.

        Raises:
            RedisUnavailable: no answer came within the timeout, or, as `NotReplicated`, not enough
                replicas acknowledged.
            AuthenticationFailed: Redis refused the connection.
        """
        return self.begin(requests, once=once, durability=durability)()

    def begin(
        self,
        requests: Sequence[Request],
        *,
        once: bool = False,
        durability: Durability | None = None,
    ) -> Replies:
        """The first half of `exchange`: sends the requests, and raises nothing.

        What it returns is the other half, to be called once. The caller may do other things before
        that while Redis is at work, but on a cluster nothing is sent until then.
        """
        began = time.monotonic()
        attempt = self._attempt(requests, durability)
        sending = time.monotonic() - began

        def finish() -> list[Any]:
            since = time.monotonic() - sending  # what the caller did meanwhile is not our delay
            try:
                return attempt()
            except Exception as error:
                if once or not is_transient(error) or retrying.expired(self._timeout, since):
                    raise retrying.give_up(error, self._timeout) from error
            retryer = tenacity.Retrying(**retrying.options(self._timeout, since))
            try:
                return retryer(lambda: self._attempt(requests, durability)())
            except Exception as error:
                raise retrying.give_up(error, self._timeout) from error

        return finish

    def _attempt(self, requests: Sequence[Request], durability: Durability | None) -> Replies:
        steps = round_trip(requests)
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
        if not isinstance(self.client, RedisCluster):
            return _send_together(self.client.connection_pool, commands, durability)
        if durability is None:
            return lambda: [self._send_routed(command) for command in commands]
        return partial(self._send_to_nodes, self.client, commands, durability)

    def _send_to_nodes(
        self, client: RedisCluster, commands: list[Command], durability: Durability
    ) -> list[Any]:
        """Sends to each node what it has the slots for, and what is to be waited for behind it.

        The cluster client gives each command any connection, so it can't be left to that.
        """
        replies: list[Any] = [NO_NODE] * len(commands)
        for node, numbers in by_node(commands, client.get_node_from_key).items():
            try:
                pool = client.get_redis_connection(node).connection_pool
                of_node = _send_together(pool, [commands[i] for i in numbers], durability)()
            except Exception as error:
                of_node = [error] * len(numbers)
            for i, reply in zip(numbers, of_node, strict=True):
                replies[i] = reply
        for i, reply in enumerate(replies):
            if is_redirect(reply):
                self._send_routed(commands[i])  # the client finds the node, and remembers it
                replies[i] = try_again(reply)
        return replies

    def _send_routed(self, command: Command) -> Any:
        """Leaves it to the cluster client to find the node; its pipelines take no scripts."""
        try:
            return self.client.execute_command(*command, **RAW)  # type: ignore[no-untyped-call]
        except Exception as error:
            return error


def _send_together(
    pool: ConnectionPool, commands: list[Command], durability: Durability | None
) -> Replies:
    """Sends all commands at once on one connection of the pool; raises nothing.

    Returns:
        What reads all replies and gives the connection back, or raises what happened.
    """
    if durability is not None:
        commands = [*commands, durability.command]
    try:
        connection = pool.get_connection()
    except Exception as error:
        return partial(_raise, error)
    try:
        connection.send_packed_command(pack(commands, connection))
    except BaseException as error:
        connection.disconnect()
        pool.release(connection)
        if not isinstance(error, Exception):
            raise
        return partial(_raise, error)

    def finish() -> list[Any]:
        try:
            replies = [_read(connection) for _ in commands]
            return replies if durability is None else durability.settle(replies)
        except BaseException:
            # Replies may be on their way still. Or there are too few replicas, since Sentinels
            # have given them another primary: then the next connection goes there.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    return finish


def _read(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except ResponseError as error:
        check_role(error, connection)
        return error


def _raise(error: Exception) -> list[Any]:
    raise error
