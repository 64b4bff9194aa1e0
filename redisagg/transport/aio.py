"""Sends requests by an asyncio redis-py client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import tenacity
from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode, PipelineCommand
from redis.exceptions import ResponseError

from redisagg.protocol.operations import Operation
from redisagg.protocol.scripts import Request
from redisagg.transport import retrying
from redisagg.transport.durability import Durability
from redisagg.transport.failures import check_connection, leads_elsewhere
from redisagg.transport.nodes import NO_NODE, group_by_node, is_redirect, retry_after_redirect
from redisagg.transport.round_trip import RAW, Command, pack, round_trip

T = TypeVar("T")


class AsyncTransport:
    """Runs operations on an asyncio client; the counterpart of `threads.Transport`.

    Args:
        client: the caller's, or one that an `Endpoint` made.
        timeout: seconds for which a round trip is retried after a lost connection; None for no
            limit.
    """

    def __init__(self, client: Redis | RedisCluster, timeout: float | None) -> None:
        self.client = client
        self.clustered = isinstance(client, RedisCluster)
        self._timeout = timeout
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
    ) -> list[Any]:
        """Makes one round trip; arguments, result and errors as `threads.Transport.exchange`."""
        since = time.monotonic()
        try:
            return await self._exchange(requests, durability)
        except Exception as error:
            options = retrying.options_after(error, self._timeout, since, once=once)
        try:
            return await tenacity.AsyncRetrying(**options)(self._exchange, requests, durability)
        except Exception as error:
            raise retrying.final_error(error, self._timeout) from error

    async def _exchange(
        self, requests: Sequence[Request], durability: Durability | None
    ) -> list[Any]:
        steps = round_trip(requests)
        try:
            commands = next(steps)
            while True:
                commands = steps.send(await self._send(commands, durability))
        except StopIteration as stop:
            replies: list[Any] = stop.value
            return replies

    async def _send(self, commands: list[Command], durability: Durability | None) -> list[Any]:
        if not isinstance(self.client, RedisCluster):
            return await self._send_pipeline(self.client.connection_pool, commands, durability)
        if durability is None:
            return await asyncio.gather(*map(self._send_routed, commands))
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
        self, client: RedisCluster, commands: list[Command], durability: Durability
    ) -> list[Any]:
        """Sends each node its commands and the durability command, to all nodes concurrently."""
        replies: list[Any] = [NO_NODE] * len(commands)

        async def send(node: ClusterNode, numbers: list[int]) -> None:
            node_commands = [*(commands[i] for i in numbers), durability.command]
            pipeline = [PipelineCommand(n, *each, **RAW) for n, each in enumerate(node_commands)]
            try:
                await node.execute_pipeline(pipeline)  # all on one connection
                results = [_reply(each.result) for each in pipeline]
                of_node = durability.check_acknowledged(results)
            except Exception as error:
                of_node = [_reply(error)] * len(numbers)
            for i, reply in zip(numbers, of_node, strict=True):
                replies[i] = reply

        async def find_node(i: int) -> None:
            await self._send_routed(commands[i])
            replies[i] = retry_after_redirect(replies[i])

        await client.initialize()
        nodes = group_by_node(commands, client.get_node_from_key)
        await asyncio.gather(*(send(*each) for each in nodes))
        await asyncio.gather(
            *(find_node(i) for i, reply in enumerate(replies) if is_redirect(reply))
        )
        return replies

    async def _send_routed(self, command: Command) -> Any:
        """Sends a command by the cluster client, which finds the node.

        Commands are sent one by one, since the client's pipelines take no scripts.
        """
        try:
            return await self.client.execute_command(*command, **RAW)
        except Exception as error:
            return _reply(error)


def _reply(reply: Any) -> Any:
    """Returns a reply of the cluster client, with an `AttributeError` as a `ConnectionError`."""
    if isinstance(reply, AttributeError):
        # When one node can't be reached, redis-py closes the connections to all nodes. A call that
        # uses one of them then fails with an AttributeError of its missing socket.
        return ConnectionError(f"the cluster client closed the connection: {reply}")
    return reply
