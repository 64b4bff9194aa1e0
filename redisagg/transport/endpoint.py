"""Where Redis is: read from a URL or from the caller's client, and made into new clients.

A flusher runs on asyncio and subscribes on a connection of its own, even if the caller's client is
a blocking one. So its clients are made from the endpoint of the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import redis
import redis.asyncio as aio
import redis.asyncio.sentinel as aio_sentinel
from redis.asyncio.connection import AbstractConnection as AsyncAbstractConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, HiredisRespSerializer
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from redisagg.errors import InvalidConfig
from redisagg.texts import redact_url
from redisagg.transport.nodes import Cluster, Node, Topology
from redisagg.transport.round_trip import PACKER

SyncClient: TypeAlias = "redis.Redis | Cluster[redis.ConnectionPool]"
AsyncClient: TypeAlias = "aio.Redis | Cluster[aio.ConnectionPool]"
AnyClient: TypeAlias = "str | redis.Redis | redis.RedisCluster | aio.Redis | aio.RedisCluster"

_SHARED_OPTIONS = {
    *("host", "port", "path", "db", "protocol", "client_name"),
    *("username", "password", "credential_provider"),
    *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options"),
    *("health_check_interval", "ssl_keyfile", "ssl_certfile", "ssl_cert_reqs", "ssl_ca_certs"),
    *("ssl_ca_path", "ssl_ca_data", "ssl_check_hostname", "ssl_password", "ssl_min_version"),
    *("ssl_ciphers",),
}
"""The options that a blocking and an asyncio connection both take."""

_INVALID_OPTION = re.compile(r"Invalid value for '(\w+)'")

_HOW_TO_WRITE = (
    "write redis://USER:PASSWORD@HOST:PORT/DB, with all characters of user and password "
    "percent-encoded that are no letters or digits"
)

_MAX_CONNECTIONS = 2**31
"""The limit of a pool, in effect none: redis-py 8 refuses the 101st connection by default.

Flushers on one event loop limit their calls together; a producer uses two connections, and one for
each other call in progress.
"""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, a primary behind Sentinels, or a cluster."""

    options: Mapping[str, Any] = field(repr=False)
    """Arguments for each connection, the password among them."""
    tls: bool = False
    sentinels: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    """Arguments for the connection to each Sentinel."""
    service: str = ""
    cluster: Sequence[Node] = ()
    """Nodes of the cluster; any that answers is enough."""
    remap: Callable[[Node], Node] | None = None
    """Translates the places by which the nodes of the cluster know each other."""

    # redis-py's own retries are turned off: it does not know which calls may be repeated, nor
    # until when.

    def blocking(self) -> SyncClient:
        """Makes a client for threads; it connects at its first command."""
        retry = Retry(NoBackoff(), 0)
        if self.cluster:
            return Cluster(self._topology(), self._blocking_pool)
        if self.service:
            sentinel = Sentinel([])
            sentinel.sentinels = [_blocking_sentinel(**kwargs) for kwargs in self.sentinels]
            client: redis.Redis = sentinel.master_for(
                self.service, retry=retry, ssl=self.tls, **self._arguments, **PACKER
            )
            return client
        return redis.Redis.from_pool(self._pool(redis, retry))

    def asyncio(self) -> AsyncClient:
        """Makes a client for asyncio; it connects at its first command."""
        retry = AsyncRetry(NoBackoff(), 0)
        if self.cluster:
            return Cluster(self._topology(), self._asyncio_pool)
        if self.service:
            sentinel = aio_sentinel.Sentinel([])
            sentinel.sentinels = [aio.Redis(retry=retry, **kwargs) for kwargs in self.sentinels]
            client: aio.Redis = sentinel.master_for(
                self.service, retry=retry, ssl=self.tls, **self._arguments
            )
            return client
        return aio.Redis.from_pool(self._pool(aio, retry))

    def answering_within(self, timeout: float) -> Endpoint:
        """The same endpoint with a `socket_timeout`, unless it has one already; the Sentinels too.

        Args:
            timeout: seconds without a reply after which a connection counts as lost.
        """
        # They are asked one after the other.
        share = timeout / max(1, len(self.sentinels))
        sentinels = [_with_timeout(each, share) for each in self.sentinels]
        return replace(self, options=_with_timeout(self.options, timeout), sentinels=sentinels)

    def of_node(self, node: Node) -> Endpoint:
        """One node of the cluster as a server; a published message reaches all nodes."""
        host, port = node
        return Endpoint({**self.options, "host": host, "port": port}, self.tls)

    def _topology(self) -> Topology:
        return Topology(self.cluster, self.remap)

    def _blocking_pool(self, node: Node) -> redis.ConnectionPool:
        pool: redis.ConnectionPool = self.of_node(node)._pool(redis, Retry(NoBackoff(), 0))
        return pool

    def _asyncio_pool(self, node: Node) -> aio.ConnectionPool:
        pool: aio.ConnectionPool = self.of_node(node)._pool(aio, AsyncRetry(NoBackoff(), 0))
        return pool

    @property
    def _arguments(self) -> dict[str, Any]:
        """The arguments for a connection pool, or for a client that makes pools."""
        return {**self.options, "max_connections": _MAX_CONNECTIONS}

    def _pool(self, module: Any, retry: Any) -> Any:
        if "path" in self.options:
            kind = module.UnixDomainSocketConnection
        elif self.tls:
            kind = module.SSLConnection
        else:
            kind = module.Connection
        options = {**self._arguments, **PACKER} if module is redis else self._arguments
        return module.ConnectionPool(connection_class=kind, retry=retry, **options)


def _with_timeout(options: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
    if options.get("socket_timeout") is not None:
        return options
    return {**options, "socket_timeout": timeout}


def _blocking_sentinel(*, ssl: bool = False, **options: Any) -> Any:
    """Makes a client for a Sentinel."""
    return Endpoint(options, ssl).blocking()


def endpoint_of(source: AnyClient | Endpoint) -> Endpoint:
    """Returns the endpoint of a URL or a client.

    URLs are ``redis://``, ``rediss://`` and ``unix://`` as redis-py reads them,
    ``redis+sentinel://[user:password@]host:port,host:port/SERVICE[/DB]``, and
    ``redis+cluster://[user:password@]host:port,host:port``. ``rediss+…`` uses TLS, except on the
    connections to Sentinels. All take redis-py's options after a ``?``.

    Args:
        source: a URL, or a client of redis-py, blocking or asyncio; or an endpoint, which is
            returned as it is.

    Raises:
        InvalidConfig: it is neither a URL of these forms nor a client of redis-py.
    """
    if isinstance(source, Endpoint):
        return source
    if isinstance(source, str):
        return _from_url(source)
    if _is_fake(source):
        raise InvalidConfig(
            f"{type(source).__name__} can't run the scripts of redisagg; {_IN_TESTS}"
        )
    if isinstance(source, redis.RedisCluster | aio.RedisCluster):
        return _from_cluster(source)
    if isinstance(source, redis.Redis | aio.Redis):
        return _from_pool(source.connection_pool)
    raise InvalidConfig(
        "redis is a URL or a client of redis-py (Redis, RedisCluster, or what Sentinel.master_for "
        f"returns), not {type(source).__name__}"
    )


def waits_without_end(client: redis.Redis | aio.Redis) -> bool:
    """Whether calls on this client can wait for a reply without end.

    It has no `socket_timeout`, or its clients for the Sentinels have none.
    """
    return any(_waits_without_end(each) for each in (client, *_sentinels(client)))


def _waits_without_end(client: Any) -> bool:
    pool: Any = client.connection_pool
    if not issubclass(pool.connection_class, _CONNECTIONS):
        return False  # not of redis-py; nothing can be said
    return pool.connection_kwargs.get("socket_timeout", _DEFAULT_TIMEOUT) is None


_CONNECTIONS = (AbstractConnection, AsyncAbstractConnection)
_DEFAULT_TIMEOUT = signature(AbstractConnection.__init__).parameters["socket_timeout"].default
"""None before redis-py 8."""


def hand_bytes_only(client: redis.Redis) -> None:
    """Has the connections of a client of the caller hand hiredis bytes only.

    hiredis 3.5 crashes if a signal handler raises while it formats a number. redis-py sends some by
    itself when it connects: HELLO with the version of the protocol, SELECT with the database.
    Nothing else changes. Those to the Sentinels are included, those with a packer of their own are
    not.
    """
    pools: list[Any] = [client.connection_pool]
    pools += [each.connection_pool for each in _sentinels(client)]
    for pool in pools:
        if not PACKER or not issubclass(pool.connection_class, AbstractConnection):
            continue
        pool.connection_kwargs.setdefault("command_packer", PACKER["command_packer"])
        for name in ("_available_connections", "_in_use_connections", "_connections"):
            for connection in list(getattr(pool, name, ())):  # they may be connected anew
                if type(getattr(connection, "_command_packer", None)) is HiredisRespSerializer:
                    connection._command_packer = PACKER["command_packer"]


def close(client: SyncClient) -> None:
    """Closes a client that `Endpoint.blocking` made, with its connections to Sentinels."""
    if isinstance(client, Cluster):
        for pool in client.take_pools():
            pool.disconnect()
        return
    client.close()
    for sentinel in _sentinels(client):
        sentinel.close()


async def aclose(client: AsyncClient) -> None:
    """Closes a client that `Endpoint.asyncio` made, with its connections to Sentinels."""
    if isinstance(client, Cluster):
        for pool in client.take_pools():
            await pool.disconnect()
        return
    await client.aclose()
    for sentinel in _sentinels(client):
        await sentinel.aclose()


def _sentinels(client: Any) -> list[Any]:
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    return list(manager.sentinels) if manager else []


_IN_TESTS = (
    "use a Redis server: in tests the private one of redisagg.testing, which its fixtures and "
    "Kit.redirect give to aggregators that exist already; see docs/testing.md"
)


def _is_fake(client: object) -> bool:
    """Whether a client is one of fakeredis, whose Lua lacks libraries that Redis has."""
    pool = getattr(client, "connection_pool", None)
    kinds = (*type(client).__mro__, getattr(pool, "connection_class", None))
    return any(getattr(kind, "__module__", "").partition(".")[0] == "fakeredis" for kind in kinds)


def _from_url(url: str) -> Endpoint:
    scheme, _, rest = url.partition("://")
    base, _, topology = scheme.partition("+")
    if base in {"memory", "fakeredis", "fake"}:
        raise InvalidConfig(
            f"there is no {base}:// in redisagg: a Redis server runs its scripts; {_IN_TESTS}"
        )
    if base not in {"redis", "rediss", "unix"} or topology not in {"", "sentinel", "cluster"}:
        raise InvalidConfig(
            f"the scheme of a Redis URL is redis, rediss or unix, with +sentinel or +cluster "
            f"behind it if need be, not {redact_url(url)}"
        )
    try:
        url.encode()  # connecting would fail with an error that does not name the URL
        if not topology:
            if base != "unix":
                _check_authority(url)
            return Endpoint(_options(url), base == "rediss")
        _check_authority(f"redis://{rest}")
        return _from_topology(topology, base == "rediss", rest)
    except InvalidConfig:
        raise
    except ValueError as error:
        # Other texts of Python and redis-py may quote a part of the password.
        option = _INVALID_OPTION.search(str(error))
        why = f"the value of {option[1]} is not valid" if option else _HOW_TO_WRITE
        raise InvalidConfig(f"the Redis URL {redact_url(url)} can't be read: {why}") from None


def _check_authority(url: str) -> None:
    """Raises `ValueError` if a password with ``#``, ``/`` or ``?`` has cut the host off.

    The first part of such a password would be taken for the host and port to connect to.
    """
    parts = urlsplit(url)
    before, at, _ = parts.query.partition("@")
    if parts.fragment or "@" in parts.path or (at and "=" not in before):
        raise ValueError


def _options(url: str) -> dict[str, Any]:
    """Returns the arguments for connections that a plain URL has.

    Raises:
        ValueError: redis-py can't read the URL, or a file that it names does not exist.
    """
    options = _shared_options(parse_url(url))
    _check_host(options.get("host", ""))
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        # redis-py would fail at the first connection, with an error that does not name the file.
        if name in options and not Path(options[name]).is_file():
            raise InvalidConfig(f"the Redis URL can't be read: {name} is no file: {options[name]}")
    return options


def _check_host(host: str) -> None:
    """Raises `InvalidConfig` if the host can't be looked up, since it has no form in IDNA."""
    try:
        host.encode("idna")
    except UnicodeError:  # without the host: in a mistyped URL it may be a part of the password
        raise InvalidConfig("the Redis URL can't be read: the name of its host is wrong") from None


def _from_topology(topology: str, tls: bool, rest: str) -> Endpoint:
    authority, _, query = rest.partition("?")  # an option may have an @
    credentials, _, places = authority.rpartition("@")
    hosts, _, path = places.partition("/")
    nodes: list[Node] = []
    for place in hosts.split(","):
        parts = urlsplit(f"//{place}")
        _check_host(parts.hostname or "")
        nodes.append((parts.hostname or "localhost", parts.port or 6379))
    user, _, password = credentials.partition(":")
    options = _options(f"redis://?{query}")
    if user:
        options["username"] = unquote(user)
    if password:
        options["password"] = unquote(password)
    if topology == "cluster":
        return Endpoint(options, tls, cluster=nodes)
    service, _, db = path.partition("/")
    if not service:
        raise InvalidConfig("the name of the service is missing behind the Sentinels")
    if db:
        options["db"] = int(db)
    sentinels = [{"host": host, "port": port} for host, port in nodes]
    return Endpoint(options, tls, sentinels=sentinels, service=unquote(service))


def _from_cluster(client: redis.RedisCluster | aio.RedisCluster) -> Endpoint:
    known = client.get_nodes() or client.nodes_manager.startup_nodes.values()
    options = client.get_connection_kwargs()
    kind: Any = options.get("connection_class", object)
    tls = bool(options.get("ssl")) or issubclass(kind, redis.SSLConnection | aio.SSLConnection)
    shared = {k: v for k, v in _shared_options(options).items() if k not in {"host", "port", "db"}}
    nodes = [(node.host, int(node.port)) for node in known]
    remap = getattr(client.nodes_manager, "address_remap", None)
    return Endpoint(shared, tls, cluster=nodes, remap=remap)


def _from_pool(pool: Any) -> Endpoint:
    tls = _is_tls(pool)
    options = _shared_options(pool.connection_kwargs)
    if isinstance(pool, SentinelConnectionPool | aio_sentinel.SentinelConnectionPool):
        sentinels = [
            {**_shared_options(each.connection_kwargs), "ssl": _is_tls(each)}
            for each in (sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels)
        ]
        return Endpoint(options, tls, sentinels=sentinels, service=pool.service_name)
    return Endpoint(options, tls)


def _is_tls(pool: Any) -> bool:
    return issubclass(pool.connection_class, redis.SSLConnection | aio.SSLConnection)


def _shared_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in _SHARED_OPTIONS}
