"""Sends requests by an asyncio redis-py client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import tenacity
from redis.asyncio import ConnectionPool
from redis.exceptions import ResponseError

from redisagg.protocol.operations import Operation
from redisagg.protocol.scripts import Request
from redisagg.transport import retrying
from redisagg.transport.durability import Durability
from redisagg.transport.endpoint import AsyncClient
from redisagg.transport.failures import check_connection, leads_elsewhere
from redisagg.transport.nodes import Cluster, Part, route
from redisagg.transport.outages import outage_of
from redisagg.transport.round_trip import Aside, Command, pack, rules_of

T = TypeVar("T")


class AsyncTransport:
    """Runs operations on an asyncio client; the counterpart of `threads.Transport`.

    Args:
        client: the caller's, or one that an `Endpoint` made.
        timeout: seconds for which a round trip is retried after a lost connection; None for no
            limit.
    """

    def __init__(self, client: AsyncClient, timeout: float | None) -> None:
        self.client = client
        self.clustered = isinstance(client, Cluster)
        self._timeout = timeout
        self._outage = outage_of(client)
        self._rules = rules_of(client)
        self.role_changes = 0
        """How often a connection was found to lead to a server that is no primary any more."""

    async def once(self, operation: Operation[T]) -> T:
        """As `run`, without retries after a lost connection."""
        return await self.run(operation, once=True)

    async def run(self, operation: Operation[T], *, once: bool = False) -> T:
        """Runs an operation to its end and returns its result; as `threads.Transport.run`."""
        try:
            requests = next(operation)
            while True:
                requests = operation.send(await self.exchange(requests, once=once))
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def exchange(
        self,
        requests: Sequence[Request],
        *,
        once: bool = False,
        durability: Durability | None = None,
        repeat_until: float | None = None,
    ) -> list[Any]:
        """Makes one round trip; arguments, result and errors as of `threads.Transport`."""
        since = time.monotonic()
        try:
            replies = await self._exchange(requests, durability)
        except Exception as error:
            timeout = retrying.limited(self._timeout, since, repeat_until)
            options = retrying.options_after(error, timeout, since, once=once, outage=self._outage)
        else:
            if self._outage.since is not None:
                self._outage.answered()
            return replies
        try:
            with self._outage.trying():
                return await tenacity.AsyncRetrying(**options)(self._exchange, requests, durability)
        except Exception as error:
            raise retrying.final_error(error, timeout) from error

    async def _exchange(
        self, requests: Sequence[Request], durability: Durability | None
    ) -> list[Any]:
        steps = self._rules(requests)
        try:
            commands = next(steps)
            while True:
                commands = steps.send(await self._send(commands, durability))
        except StopIteration as stop:
            replies: list[Any] = stop.value
            return replies

    async def _send(self, commands: list[Command], durability: Durability | None) -> list[Any]:
        if isinstance(commands, Aside):
            durability = None
        if not isinstance(self.client, Cluster):
            return await self._send_pipeline(self.client.connection_pool, commands, durability)
        return await self._send_to_nodes(self.client, commands, durability)

    async def _send_pipeline(
        self, pool: ConnectionPool, commands: list[Command], durability: Durability | None
    ) -> list[Any]:
        """Sends all commands at once on one connection of the pool and reads the replies."""
        if durability is not None:
            commands = [*commands, durability.command]
        connection = await pool.get_connection()
        try:
            try:
                await connection.send_packed_command(pack(commands, connection))
                replies = [await self._read(connection) for _ in commands]
                return replies if durability is None else durability.check_acknowledged(replies)
            except BaseException as error:
                await connection.disconnect(nowait=True)
                if leads_elsewhere(error):
                    self.role_changes += 1
                    await pool.disconnect(inuse_connections=False)
                raise
        finally:
            await pool.release(connection)

    @staticmethod
    async def _read(connection: Any) -> Any:
        try:
            return await connection.read_response(disable_decoding=True)
        except ResponseError as error:
            check_connection(error)
            return error

    async def _send_to_nodes(
        self,
        cluster: Cluster[ConnectionPool],
        commands: list[Command],
        durability: Durability | None,
    ) -> list[Any]:
        """Sends each node its commands, to all nodes concurrently."""

        async def send(part: Part) -> list[Any]:
            try:
                pool = cluster.pool(part.node)
                confirmed = durability if part.numbers else None
                return await self._send_pipeline(pool, part.sent, confirmed)
            except Exception as error:
                return [error] * len(part.sent)

        steps = route(cluster.topology, commands)
        try:
            parts = next(steps)
            while True:
                if len(parts) == 1:  # the usual case, without the cost of a task
                    parts = steps.send([await send(parts[0])])
                else:
                    parts = steps.send(await asyncio.gather(*map(send, parts)))
        except StopIteration as stop:
            for pool in cluster.take_unused():
                await pool.disconnect(inuse_connections=False)
            replies: list[Any] = stop.value
            return replies
