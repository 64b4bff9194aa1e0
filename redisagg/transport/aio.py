"""Requests over an asyncio redis-py client."""

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
from redisagg.transport.durability import NO_NODE, Durability, by_node, is_redirect, try_again
from redisagg.transport.failures import check_role, is_transient
from redisagg.transport.rounds import RAW, Command, pack, round_trip

T = TypeVar("T")


class AsyncTransport:
    """Runs operations on an asyncio client; the counterpart of `threads.Transport`.

    Args:
        client: the caller's, or one that an `Endpoint` made.
        timeout: seconds for which lost connections are ridden out; None for ever.
    """

    def __init__(self, client: Redis | RedisCluster, timeout: float | None) -> None:
        self.client = client
        self.clustered = isinstance(client, RedisCluster)
        self._timeout = timeout

    async def run(self, operation: Operation[T]) -> T:
        """As `threads.Transport.run`."""
        return await self._run(operation, once=False)

    async def once(self, operation: Operation[T]) -> T:
        """As `threads.Transport.once`."""
        return await self._run(operation, once=True)

    async def _run(self, operation: Operation[T], *, once: bool) -> T:
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
        """As `threads.Transport.exchange`.

        Args:
            requests: what to send in one round trip.
            once: whether to raise at the first lost connection, for requests whose reply can't
                be had again.
            durability: what else to wait for.
        """
        since = time.monotonic()
        try:
            return await self._exchange(requests, durability)
        except Exception as error:
            if once or not is_transient(error) or retrying.expired(self._timeout, since):
                raise retrying.give_up(error, self._timeout) from error
        retryer = tenacity.AsyncRetrying(**retrying.options(self._timeout, since))
        try:
            return await retryer(self._exchange, requests, durability)
        except Exception as error:
            raise retrying.give_up(error, self._timeout) from error

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
            return await self._send_together(self.client.connection_pool, commands, durability)
        if durability is None:
            return await asyncio.gather(*map(self._send_routed, commands))
        return await self._send_to_nodes(self.client, commands, durability)

    async def _send_together(
        self, pool: ConnectionPool, commands: list[Command], durability: Durability | None
    ) -> list[Any]:
        """As `threads.Transport._send_together`."""
        if durability is not None:
            commands = [*commands, durability.command]
        connection = await pool.get_connection()
        try:
            try:
                await connection.send_packed_command(pack(commands, connection))
                replies = [await self._read(connection) for _ in commands]
                return replies if durability is None else durability.settle(replies)
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
        finally:
            await pool.release(connection)

    @staticmethod
    async def _read(connection: Any) -> Any:
        try:
            return await connection.read_response(disable_decoding=True)
        except ResponseError as error:
            check_role(error, connection)
            return error

    async def _send_to_nodes(
        self, client: RedisCluster, commands: list[Command], durability: Durability
    ) -> list[Any]:
        """As `threads.Transport._send_to_nodes`, to all nodes at the same time."""
        replies: list[Any] = [NO_NODE] * len(commands)

        async def send(node: ClusterNode, numbers: list[int]) -> None:
            its_commands = [*(commands[i] for i in numbers), durability.command]
            pipeline = [PipelineCommand(n, *each, **RAW) for n, each in enumerate(its_commands)]
            try:
                await node.execute_pipeline(pipeline)  # all on one connection
                of_node = durability.settle([_reply(each.result) for each in pipeline])
            except Exception as error:
                of_node = [_reply(error)] * len(numbers)
            for i, reply in zip(numbers, of_node, strict=True):
                replies[i] = reply

        async def find_node(i: int) -> None:
            await self._send_routed(commands[i])
            replies[i] = try_again(replies[i])

        await client.initialize()
        nodes = by_node(commands, client.get_node_from_key)
        await asyncio.gather(*(send(*each) for each in nodes.items()))
        await asyncio.gather(
            *(find_node(i) for i, reply in enumerate(replies) if is_redirect(reply))
        )
        return replies

    async def _send_routed(self, command: Command) -> Any:
        """Leaves it to the cluster client to find the node; its pipelines take no scripts."""
        try:
            return await self.client.execute_command(*command, **RAW)
        except Exception as error:
            return _reply(error)


def _reply(reply: Any) -> Any:
    """A reply, or the error in its place, from a connection of a cluster client."""
    if isinstance(reply, AttributeError):
        # When one node can't be reached, redis-py closes the connections to all, those in use too,
        # and stumbles over the missing socket.
        return ConnectionError(f"the cluster client closed the connection: {reply}")
    return reply
