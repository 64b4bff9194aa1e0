"""Requests over a blocking redis-py client, from any number of threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeVar

import tenacity
from redis import ConnectionPool, Redis, RedisCluster
from redis.exceptions import ResponseError

from redisagg.operations import Operation
from redisagg.protocol.scripts import Request
from redisagg.transport import retrying
from redisagg.transport.failures import check_role, is_transient
from redisagg.transport.rounds import RAW, Command, pack, round_trip

T = TypeVar("T")


class Transport:
    """Runs operations on a blocking client.

    Args:
        client: the caller's, or one that `redisagg.transport.clients` made.
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

    def exchange(self, requests: Sequence[Request], *, once: bool = False) -> list[Any]:
        """One round trip; a request that Redis refused has one of our errors for its reply.

        Args:
            requests: what to send.
            once: whether to raise at the first lost connection.

        Raises:
            RedisUnavailable: no answer came within the timeout.
            AuthenticationFailed: Redis refused the connection.
        """
        since = time.monotonic()
        try:
            return self._exchange(requests)
        except Exception as error:
            if once or not is_transient(error) or retrying.expired(self._timeout, since):
                raise retrying.give_up(error, self._timeout) from error
        retryer = tenacity.Retrying(**retrying.options(self._timeout, since))
        try:
            return retryer(self._exchange, requests)
        except Exception as error:
            raise retrying.give_up(error, self._timeout) from error

    def _exchange(self, requests: Sequence[Request]) -> list[Any]:
        steps = round_trip(requests)
        try:
            commands = next(steps)
            while True:
                commands = steps.send(self._send(commands))
        except StopIteration as stop:
            replies: list[Any] = stop.value
            return replies

    def _send(self, commands: list[Command]) -> list[Any]:
        if isinstance(self.client, RedisCluster):
            return [self._send_routed(command) for command in commands]
        return self._send_together(self.client.connection_pool, commands)

    def _send_together(self, pool: ConnectionPool, commands: list[Command]) -> list[Any]:
        """Sends all commands at once, and reads all replies, on one connection of the pool."""
        connection = pool.get_connection()
        try:
            try:
                connection.send_packed_command(pack(commands, connection))
                return [self._read(connection) for _ in commands]
            except BaseException:
                connection.disconnect()  # replies may be on their way still
                raise
        finally:
            pool.release(connection)

    @staticmethod
    def _read(connection: Any) -> Any:
        try:
            return connection.read_response(disable_decoding=True)
        except ResponseError as error:
            check_role(error, connection)
            return error

    def _send_routed(self, command: Command) -> Any:
        """Leaves it to the cluster client to find the node; its pipelines take no scripts."""
        try:
            return self.client.execute_command(*command, **RAW)  # type: ignore[no-untyped-call]
        except Exception as error:
            return error
