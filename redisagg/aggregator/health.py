"""Asking within a time whether namespaces work."""

from __future__ import annotations

from collections.abc import Collection

from redisagg.aggregator.bounded import await_within, call_within
from redisagg.durations import Duration, to_seconds
from redisagg.errors import InvalidConfig, RedisAggError
from redisagg.namespace import Namespace
from redisagg.operations import probing
from redisagg.protocol.operations import Operation
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.endpoint import AsyncClient, SyncClient
from redisagg.transport.threads import Transport
from redisagg.views import Health


def ask(targets: Collection[tuple[Namespace, SyncClient]], timeout: Duration) -> Health:
    """Asks for the health of several namespaces together, each by a client.

    Args:
        targets: the namespaces and clients.
        timeout: seconds within which it returns.

    Raises:
        InvalidConfig: the timeout is out of range.
    """
    limit = to_seconds(timeout, "timeout", InvalidConfig)
    found: list[Health] = []

    def ask_all() -> None:
        for namespace, client in targets:
            transport = Transport(client, limit)
            found.append(transport.run(_operation(namespace, clustered=transport.clustered)))

    try:
        call_within(limit, ask_all)
    except RedisAggError as error:
        found.append(probing.unreachable(error))
    if len(found) < len(targets):
        found.append(probing.no_answer(limit))
    return probing.together(found.copy())


async def ask_on_loop(namespace: Namespace, client: AsyncClient, timeout: Duration) -> Health:
    """Asks for the health of a namespace from an event loop; as `ask`."""
    limit = to_seconds(timeout, "timeout", InvalidConfig)
    found: list[Health] = []

    async def ask_one() -> None:
        transport = AsyncTransport(client, limit)
        found.append(await transport.run(_operation(namespace, clustered=transport.clustered)))

    try:
        await await_within(limit, ask_one())
    except RedisAggError as error:
        found.append(probing.unreachable(error))
    return found[0] if found else probing.no_answer(limit)


def _operation(namespace: Namespace, *, clustered: bool) -> Operation[Health]:
    operation = probing.health(namespace.keyspace)
    # On a cluster the record may be on a dead master.
    return operation if clustered else namespace.checked(operation)
