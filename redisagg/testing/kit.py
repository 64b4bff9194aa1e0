"""The kit for tests of code that uses redisagg: aggregators on a private server, and their time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import redis

from redisagg.aggregator import Aggregator, AsyncAggregator
from redisagg.app import App, AppAggregator
from redisagg.app.batched import Batched
from redisagg.app.clients import Clients
from redisagg.config import AggregationConfig
from redisagg.errors import InvalidConfig
from redisagg.settings import Settings
from redisagg.sinks import Sink
from redisagg.sinks.routing import Route
from redisagg.testing.clock import Clock, MovedEndpoint
from redisagg.testing.driver import Driver, Flushed, ThisThread, busy
from redisagg.testing.embedded import EmbeddedRedis
from redisagg.testing.recording import RecordingSink
from redisagg.texts import shorten
from redisagg.transport.endpoint import AsyncClient, aclose, endpoint_of

if TYPE_CHECKING:
    from typing_extensions import Self

Target: TypeAlias = "App | Aggregator | AsyncAggregator | Batched[Any, Any]"

T = TypeVar("T", bound=Target)

DATABASES = 1024
"""The number of databases of a server for tests: each kit takes the next one."""

_USUAL_DATABASES = "16"

_SOCKET_TIMEOUT = 5.0
"""Seconds without a reply after which the connection for flushes counts as lost."""

_MOST_ROUNDS = 1_000
"""The number of times that `drain` moves the clock."""

_numbers = itertools.count(1)


class Kit:
    """Aggregators for one test, on a database of their own, with a clock that the test moves.

    What `flush_due` and `drain` flush is merged and delivered in the thread of the test. No flusher
    runs, and nobody sleeps. As a context manager it closes itself at the end.

    Args:
        server: a private server; the databases that kits take are emptied.
    """

    def __init__(self, server: EmbeddedRedis) -> None:
        number = next(_numbers) % int(server.config.get("databases", _USUAL_DATABASES))
        self.url = f"{server.url.rpartition('/')[0]}/{number}"
        """The URL of the database."""
        self.redis = redis.Redis.from_url(self.url)
        """A client for looking into the database."""
        self.redis.flushdb()
        self.clock = Clock()
        """The clock of the scripts of this kit."""
        self.sink = RecordingSink()
        """What the aggregators have enqueued, but those that kept their sinks."""
        self.clock.on_moved.append(self._wake_flushers)
        self._endpoint = MovedEndpoint.of(endpoint_of(self.url), self.clock)
        self._clients = Clients()
        self._thread = ThisThread()
        self._drivers: dict[int, tuple[Aggregator | AsyncAggregator, Driver]] = {}
        """By the `id` of each aggregator."""
        self._undo = ExitStack()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops flushers, closes connections, and sends redirected aggregators where they were."""
        if self._closed:
            return
        self._closed = True
        self._undo.close()
        self._clients.close()
        self._thread.close()
        with suppress(redis.RedisError):  # the test may have ended the server
            self.redis.flushdb()
        self.redis.close()

    # --- aggregators -----------------------------------------------------------------------------

    def aggregator(
        self,
        name: str = "tests",
        *,
        config: AggregationConfig | None = None,
        sink: Sink | Route | str | None = None,
    ) -> Aggregator:
        """Makes an aggregator of this kit.

        Args:
            name: as for `Aggregator`.
            config: as for `Aggregator`.
            sink: as for `Aggregator`; None for one that records in `sink` of the kit.
        """
        made = Aggregator(name, self.url, config=config, sink=sink)
        return self.redirect(made, keep_sink=sink is not None)

    def async_aggregator(
        self,
        name: str = "tests",
        *,
        config: AggregationConfig | None = None,
        sink: Sink | Route | str | None = None,
    ) -> AsyncAggregator:
        """Makes an aggregator of this kit for asyncio; arguments as of `aggregator`."""
        made = AsyncAggregator(name, self.url, config=config, sink=sink)
        return self.redirect(made, keep_sink=sink is not None)

    def app(self, *, config: AggregationConfig | None = None) -> App:
        """Makes an app whose aggregators are of this kit.

        Args:
            config: settings of all of its aggregators.
        """
        config = config or AggregationConfig()
        return self.redirect(App(settings=Settings(url=self.url, config=config)))

    def redirect(self, target: T, *, keep_sink: bool = False) -> T:
        """Has aggregators use the server, the clock and the sink of this kit until it is closed.

        It is for those that the code under test has made, for instance at the top level of a
        module. They stay the same objects, so it does not matter who has imported them.

        Args:
            target: an app, with all of its aggregators and those that it gets later; an aggregator;
                or a function that `App.batched` made.
            keep_sink: whether merged tasks go to the sinks of the aggregators. A stream or list is
                then one in the database of the kit; others are where they are.

        Returns:
            The target.

        Raises:
            InvalidConfig: it is something else, a flusher of it runs in this process, or a module
                in `include` of the app can't be imported.
        """
        if isinstance(target, App):
            self._redirect_app(target, keep_sink)
        elif isinstance(target, Batched):
            self._redirect(target.aggregator, keep_sink)
        elif isinstance(target, Aggregator | AsyncAggregator):
            self._redirect(target, keep_sink)
        else:
            raise InvalidConfig(
                f"redirect takes an App, an aggregator or a batched function, not {shorten(target)}"
            )
        return target

    def _redirect_app(self, app: App, keep_sink: bool) -> None:
        for each in app.aggregators.values():
            self._redirect(each, keep_sink)

        enter = app._enter

        def enter_redirected(made: AppAggregator[..., Any]) -> None:
            enter(made)
            self._redirect(made, keep_sink)

        self._replace(app, "_enter", enter_redirected)
        configure = app.configure

        def configure_redirected(settings: Settings) -> None:
            configure(settings)  # makes the aggregators anew
            for each in app._aggregators.values():
                self._redirect(each, keep_sink)

        self._replace(app, "configure", configure_redirected)

    def _replace(self, app: App, method: str, other: Callable[..., Any]) -> None:
        """Replaces a method of an app until the kit is closed."""
        before = dict(vars(app))
        vars(app)[method] = other

        def undo() -> None:
            vars(app).pop(method)
            if method in before:  # that of another kit
                vars(app)[method] = before[method]

        self._undo.callback(undo)

    def _redirect(self, target: Aggregator | AsyncAggregator, keep_sink: bool) -> None:
        if target.is_running:
            raise InvalidConfig(f"a flusher of {target.name!r} runs; stop it, then redirect")
        own = target._namespace.sink
        # The private server has no replicas.
        here: dict[str, Any] = {"executor": "thread", "min_replicas": 0, "wait_for_fsync": False}
        kind = Aggregator if isinstance(target, Aggregator) else AsyncAggregator
        endpoint: Any = self._endpoint
        made = kind(
            target.name,
            endpoint,
            config=replace(target.config, **here),
            sink=own if keep_sink else RecordingSink(like=own, into=self.sink),
        )
        made._namespace.clock._monotonic = self.clock.monotonic
        before = dict(vars(target))
        self._undo.callback(self._restore, target, before)
        vars(target).update(vars(made))
        if isinstance(target, AppAggregator):
            target._clients = self._clients
            if "_twin" in before:
                self._redirect_twin(target, before["_twin"])
        self._drivers[id(target)] = target, Driver(target._namespace, self.clock)

    def _redirect_twin(self, target: AppAggregator[..., Any], twin: AsyncAggregator) -> None:
        """Redirects the aggregator for asyncio, which somebody may hold."""
        vars(target).pop("_twin", None)
        before = dict(vars(twin))
        vars(twin).update(vars(target.asyncio))
        vars(target)["_twin"] = twin
        self._undo.callback(_put_back, twin, before)

    def _restore(self, target: Aggregator | AsyncAggregator, before: dict[str, Any]) -> None:
        self._drivers.pop(id(target), None)
        if isinstance(target, Aggregator):
            target._adder.sequences.drain()  # the database is emptied anyway
            target.close()
        _put_back(target, before)

    # --- flushing --------------------------------------------------------------------------------

    def flush_due(self, *targets: Target) -> Flushed:
        """Flushes what is due by the clock, in this thread.

        It is flushed as a flusher would do it: with attempts, dead letters, policies, limits and
        receipts. A batch that failed is tried again when the clock has come to its next attempt.

        Args:
            targets: what to flush, as for `redirect`; all aggregators of this kit by default.

        Returns:
            The merged tasks in the order in which their batches left; and the attempts that failed.

        Raises:
            FlusherFailed: a flusher of an aggregator runs elsewhere, or an event loop runs in this
                thread: use `aflush_due`.
            Crash: a merge function or a sink has raised it.
            RedisAggError: Redis can't be used.
        """
        return self._thread.run(
            self._flush(self._client(), self._drivers_of(targets), self._thread)
        )

    async def aflush_due(self, *targets: Target) -> Flushed:
        """As `flush_due`, on the running event loop.

        An ``async`` merge function is awaited on this event loop, a plain one is called in a thread
        beside it, as in a flusher.
        """
        drivers, client = self._drivers_of(targets), self._new_client()
        try:
            return await self._flush(client, drivers, None)
        finally:
            await aclose(client)

    def drain(self, *targets: Target) -> Flushed:
        """Flushes all that waits, due or not, and moves the clock to each further attempt.

        Nothing is left but dead letters and what is paused. The clock is moved too for tasks that
        may not be flushed before a moment, and for limits on work.

        Args:
            targets: as for `flush_due`.

        Returns:
            As of `flush_due`, for all that was flushed.

        Raises:
            FlusherFailed, RedisAggError: as of `flush_due`.
            AssertionError: there is more after 1,000 moves of the clock.
        """
        return self._thread.run(
            self._drain(self._client(), self._drivers_of(targets), self._thread)
        )

    async def adrain(self, *targets: Target) -> Flushed:
        """As `drain`, on the running event loop; see `aflush_due`."""
        drivers, client = self._drivers_of(targets), self._new_client()
        try:
            return await self._drain(client, drivers, None)
        finally:
            await aclose(client)

    def _client(self) -> AsyncClient:
        """The client on the event loop for this thread."""
        return self._thread.client(self._endpoint.answering_within(_SOCKET_TIMEOUT))

    def _new_client(self) -> AsyncClient:
        return self._endpoint.answering_within(_SOCKET_TIMEOUT).asyncio()

    def _drivers_of(self, targets: Iterable[Target]) -> list[Driver]:
        if self._closed:
            raise InvalidConfig("the kit is closed")
        chosen = list(_aggregators_of(targets))
        if not chosen:
            return [driver for _, driver in self._drivers.values()]
        for each in chosen:
            if id(each) not in self._drivers:
                raise InvalidConfig(
                    f"{shorten(each)} is no aggregator of this kit; call its method redirect first"
                )
        return [self._drivers[id(each)][1] for each in chosen]

    async def _flush(
        self, client: AsyncClient, drivers: list[Driver], thread: ThisThread | None
    ) -> Flushed:
        flushed = Flushed()
        while True:
            some = Flushed()
            for driver in await busy(client, drivers):
                some.add(await driver.flush_due(client, thread))
            flushed.add(some)
            # What one has flushed may have made something of another one due.
            if len(drivers) < 2 or not some.steps:
                flushed.next_due = some.next_due
                return flushed

    async def _drain(
        self, client: AsyncClient, drivers: list[Driver], thread: ThisThread | None
    ) -> Flushed:
        flushed, some = Flushed(), Flushed()
        for _ in range(_MOST_ROUNDS):
            for driver in await busy(client, drivers):
                await driver.flush_all(client)
            some = await self._flush(client, drivers, thread)
            flushed.add(some)
            if some.next_due is None:
                flushed.next_due = None
                return flushed
            self.clock.advance(seconds=some.next_due)
        raise AssertionError(
            f"drain has moved the clock {_MOST_ROUNDS:,} times, and more is due in "
            f"{some.next_due:g} seconds"
        )

    def _wake_flushers(self) -> None:
        """Tells the flushers of this process that time has passed."""
        for target, _ in self._drivers.values():
            if target.is_running:
                keyspace = target._namespace.keyspace
                for partition in keyspace.partitions:
                    self.redis.publish(keyspace.wake_channel, b"%d" % partition.number)


def _aggregators_of(targets: Iterable[Target]) -> Iterator[Aggregator | AsyncAggregator]:
    for target in targets:
        if isinstance(target, App):
            yield from target.aggregators.values()
        elif isinstance(target, Batched):
            yield target.aggregator
        else:
            yield target


def _put_back(target: object, before: dict[str, Any]) -> None:
    vars(target).clear()
    vars(target).update(before)
