"""The registry of the aggregators of a code base."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from redisagg.aggregator.health import ask
from redisagg.aggregator.together import run_together
from redisagg.app.aggregator import AppAggregator, P, R
from redisagg.app.batched import Batched, Function, In, Out, merge_of
from redisagg.app.clients import Clients
from redisagg.app.selection import select
from redisagg.app.targets import load, place_of
from redisagg.config import AggregationConfig, GroupAggregator, check_range
from redisagg.durations import Duration, to_seconds
from redisagg.errors import InvalidConfig
from redisagg.events import Event, OnEvent
from redisagg.operations import probing
from redisagg.rate_limit import RateLimit
from redisagg.schedule import Cron
from redisagg.settings import Settings
from redisagg.sinks import Sink, StreamSink
from redisagg.sinks.routing import Route
from redisagg.views import Health

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class AggregatorSettings(TypedDict, total=False):
    """The settings of one aggregator, as `AggregationConfig` has them."""

    group_grace_period: Duration | None
    group_max_delay: Duration | None
    group_max_size: int
    group_max_bytes: int | None
    group_max_weight: int | None
    group_min_interval: Duration | None
    group_leading: bool
    group_schedule: Cron | None
    partitions: int
    concurrency: int
    max_concurrency: int | None
    group_concurrency: int | None
    rate_limit: RateLimit | None
    group_rate_limit: RateLimit | None
    executor: Literal["thread", "process"]
    merge_timeout: Duration
    max_attempts: int
    retry_delay: Duration
    retry_max_delay: Duration
    isolate_failures: bool
    on_task_failure: Literal["dead", "retry"]
    lease_time: Duration
    max_task_bytes: int
    max_merged_bytes: int
    linger: Duration
    add_timeout: Duration
    max_pending_tasks: int | None
    max_pending_bytes: int | None
    full_timeout: Duration
    dedupe_window: Duration
    min_replicas: int
    wait_for_fsync: bool
    replica_timeout: Duration
    shutdown_timeout: Duration
    result_ttl: Duration
    history: bool
    on_event: OnEvent | None
    event_kinds: Collection[type[Event]] | None


class App:
    """The aggregators of a code base, which share a Redis, clients and settings.

    It connects to nothing until an aggregator is used or run, so it can be made when a module is
    imported, and used in processes that were forked later.

    Args:
        url: URL of the Redis server, as for `Aggregator`; that of the settings if None.
        sink: destination of merged tasks of aggregators that set no sink of their own; that of the
            settings if None.
        settings: settings of all aggregators; `Settings()` if None.
        include: names of modules that define aggregators of this app. They are imported when the
            aggregators are listed or run, so they may import the module of the app.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
        SinkError: the sink's URL needs a package that is not installed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        sink: Sink | Route | str | None = None,
        settings: Settings | None = None,
        include: Sequence[str] = (),
    ) -> None:
        if settings is None:
            settings = Settings()
        if not isinstance(settings, Settings):
            raise InvalidConfig(f"settings must be a Settings, not {type(settings).__name__}")
        if isinstance(include, str) or not all(isinstance(each, str) for each in include):
            raise InvalidConfig(f"include is a list of names of modules, not {include!r:.100}")
        given: dict[str, Any] = {"url": url, "sink": sink}
        self._settings = replace(settings, **{k: v for k, v in given.items() if v is not None})
        self._include = tuple(include)
        self._clients = Clients()
        self._aggregators: dict[str, AppAggregator[..., Any]] = {}
        self._makers: dict[str, Callable[[Settings], AppAggregator[..., Any]]] = {}
        """For the name of each aggregator: what makes another one by settings."""

    @classmethod
    def from_env(cls, *, include: Sequence[str] = ()) -> Self:
        """Makes an app with the settings of the environment variables; see `Settings.from_env`.

        Args:
            include: as for the class.

        Raises:
            InvalidConfig: a variable has a wrong value; the message names it.
            SinkError: the sink's URL needs a package that is not installed.
        """
        return cls(settings=Settings.from_env(), include=include)

    @property
    def settings(self) -> Settings:
        """The settings of all aggregators."""
        return self._settings

    def aggregator(
        self,
        name: str,
        *,
        sink: Sink | Route | str | None = None,
        **config: Unpack[AggregatorSettings],
    ) -> Callable[[Callable[P, R]], AppAggregator[P, R]]:
        """Makes an aggregator from the merge function that this decorates.

        Args:
            name: name of the namespace, as for `Aggregator`.
            sink: destination of merged tasks; that of the app if None.
            config: settings of `AggregationConfig` in place of those of the app.

        Returns:
            A decorator of a merge function, plain or ``async``; it returns an `AppAggregator`.

        Raises:
            InvalidConfig: an argument is out of range or of the wrong type, or the app has another
                aggregator of this name. The decorator raises it too.
        """
        unknown = sorted(config.keys() - {each.name for each in fields(AggregationConfig)})
        if unknown or "group_aggregator" in config:
            name_ = unknown[0] if unknown else "group_aggregator"
            raise InvalidConfig(f"an aggregator of an app has no setting {name_}")
        replace(self._settings.config, **config)  # checks them

        def decorate(function: Callable[P, R]) -> AppAggregator[P, R]:
            def make(settings: Settings) -> AppAggregator[P, R]:
                return AppAggregator(
                    function,
                    name,
                    settings.url,
                    config=replace(settings.config, **config),
                    sink=settings.sink if sink is None else sink,
                    clients=self._clients,
                    prepare=self._prepared,
                )

            made = make(self._settings)
            self._enter(made)
            self._makers[name] = make
            return made

        return decorate

    def batched(
        self,
        name: str | None = None,
        *,
        max_size: int = 64,
        max_weight: int | None = None,
        weight: Callable[[Any], int] | None = None,
        grace: Duration = 0.005,
        timeout: Duration = 30.0,
        spread: int = 1,
        **config: Unpack[AggregatorSettings],
    ) -> Callable[[Function[In, Out]], Batched[In, Out]]:
        """Has the function of a list that this decorates called for single items.

        ``await embed(item)`` or ``embed.call(item)`` gathers the items of all processes, and has a
        worker call the function for many of them.

        Args:
            name: name of the namespace, as for `Aggregator`; the name of the function by default.
            max_size: largest number of items in a call of the function.
            max_weight: largest sum of their weights; None for no limit. A heavier item is alone.
            weight: returns the weight of an item, such as its tokens: a whole number from 0.
            grace: seconds that an item waits for others at most; one millisecond at least.
            timeout: seconds after which a call without a result raises `ResultTimeout`.
            spread: number of groups among which the calls are spread, each in a partition of its
                own. With 1, one flusher calls the function, whatever their number.
            config: further settings of `AggregationConfig`.

        Returns:
            A decorator of a function, plain or ``async``. It takes a list, and returns a list of
            the same length, or a mapping that has each item as a key. A value may be an exception,
            which is that of one item. What the function raises is raised for each item of its list.

        Raises:
            InvalidConfig: an argument is out of range or of the wrong type, or the app has another
                aggregator of this name. The decorator raises it too.
        """
        if (weight is None) != (max_weight is None):
            raise InvalidConfig("max_weight and weight belong together; give both or none")
        timeout = to_seconds(timeout, "timeout", InvalidConfig)
        settings: AggregatorSettings = {
            "group_grace_period": None,
            "group_max_delay": grace,
            "group_max_size": max_size,
            "group_max_weight": max_weight,
            "max_attempts": 1,
            "result_ttl": timeout,
            **config,
        }

        def decorate(function: Function[In, Out]) -> Batched[In, Out]:
            merge = merge_of(function)
            named = str(getattr(function, "__name__", "")) if name is None else name
            made = self.aggregator(named, sink=StreamSink(f"{named}-batches"), **settings)(merge)
            check_range("spread", spread, 1, made.config.partitions)
            return Batched(function, made, weight=weight, timeout=timeout, spread=spread)

        return decorate

    def _prepared(self, merge: GroupAggregator) -> GroupAggregator:
        """Returns what flushers call in place of a merge function; a framework puts more around."""
        return merge

    def configure(self, settings: Settings) -> None:
        """Sets other settings, for instance those of a web framework that are known later.

        The aggregators keep what their decorators set. Connections are closed. To be called before
        other threads use the app.

        Args:
            settings: settings of all aggregators.

        Raises:
            InvalidConfig: a flusher runs in this process, `settings` is no `Settings`, or a setting
                is out of range together with those of an aggregator.
        """
        if not isinstance(settings, Settings):
            raise InvalidConfig(f"settings must be a Settings, not {type(settings).__name__}")
        known = list(self._aggregators.values())
        if running := [each.name for each in known if each.is_running or each.asyncio.is_running]:
            raise InvalidConfig(f"the flusher of {running[0]!r} runs; stop it, then configure")
        others = [self._makers[each.name](settings) for each in known]
        self.close()
        for each, other in zip(known, others, strict=True):  # whoever has imported it keeps it
            vars(each).clear()
            vars(each).update(vars(other))
        self._settings = settings

    def _enter(self, made: AppAggregator[..., Any]) -> None:
        """Adds an aggregator, or replaces that of the same function: its module is reloaded."""
        known = self._aggregators.get(made.name)
        if known is not None and _place(known) != _place(made):
            raise InvalidConfig(
                f"the app has an aggregator {made.name!r} already, of {'.'.join(_place(known))}"
            )
        self._aggregators[made.name] = made

    @property
    def aggregators(self) -> dict[str, AppAggregator[..., Any]]:
        """The aggregators by name; imports the modules of `include`.

        Raises:
            InvalidConfig: a module can't be imported.
        """
        for each in self._include:
            try:
                import_module(each)
            except ImportError as error:
                raise InvalidConfig(
                    f"{each!r}, which is in include, can't be imported: {error}"
                ) from error
        return dict(self._aggregators)

    # --- flushing --------------------------------------------------------------------------

    def run(self, *, only: Collection[str] = (), concurrency: int | None = None) -> None:
        """Runs the flushers of all aggregators until SIGTERM or SIGINT; see `run_all`.

        Args:
            only: names of the aggregators to run; all if empty.
            concurrency: number of batches that each merges at the same time, in place of the
                setting.

        Raises:
            InvalidConfig: there is no such aggregator, or an argument is out of range.
            RedisAggError: Redis can't be used; see `Aggregator`.
            Exception: the error that ended a flusher.
        """
        run_together(select(self.aggregators.values(), only), concurrency)

    def start(self) -> None:
        """Starts a flusher for each aggregator in threads of this process.

        Raises:
            RedisAggError: as for `Aggregator.start`. Those that were started before it run on.
        """
        for each in self.aggregators.values():
            each.start()

    def stop(self, flush: bool = False) -> None:
        """Stops the flushers of this process, all at the same time.

        Args:
            flush: as for `Aggregator.stop`.

        Raises:
            RedisAggError: as for `Aggregator.stop`. All flushers are stopped all the same.
        """
        _for_each(self._aggregators.values(), lambda each: each.stop(flush))

    def close(self) -> None:
        """Stops the flushers, and closes the connections of threads."""
        _for_each(self._aggregators.values(), lambda each: each.close())
        self._clients.close()

    async def aclose(self) -> None:
        """Stops flushers on this event loop, and closes its connections."""
        for each in self._aggregators.values():
            await each.asyncio.close()
        await self._clients.aclose()

    @asynccontextmanager
    async def lifespan(
        self, web_app: object = None, *, flushers: bool = False
    ) -> AsyncIterator[None]:
        """Closes the app when a web application ends: ``FastAPI(lifespan=app.lifespan)``.

        For FastAPI, Starlette, Litestar and all that take such a context manager. Nothing is asked
        of Redis before the first use, so the application also starts while Redis is away.

        Args:
            web_app: the web application, which the framework passes; it is not used.
            flushers: whether to run all flushers on the event loop of the application, as long as
                it runs. With ``functools.partial(app.lifespan, flushers=True)`` for a framework.

        Returns:
            An asynchronous context manager.

        Raises:
            RedisAggError: with `flushers`, as for `Aggregator.start`.
        """
        try:
            if flushers:
                for each in self.aggregators.values():
                    await each.asyncio.start()
            yield
        finally:
            await self.aclose()
            await asyncio.to_thread(self.close)

    # --- probing ---------------------------------------------------------------------------

    def health(self, timeout: Duration = 1.0) -> Health:
        """Says whether all aggregators work; for a health endpoint or a probe.

        Args:
            timeout: seconds (or a `timedelta`) within which it returns, whatever Redis does.

        Returns:
            Whether Redis is reachable, all partitions of all aggregators are led, and for how long
            work is overdue. An error of Redis is a part of it.

        Raises:
            InvalidConfig: the timeout is out of range, or a module of `include` can't be imported.
        """
        known = self.aggregators.values()
        return ask([(each._namespace, each._transport.client) for each in known], timeout)

    async def ahealth(self, timeout: Duration = 1.0) -> Health:
        """Says whether all aggregators work, on an event loop; as `health`.

        Args:
            timeout: seconds (or a `timedelta`) within which it returns, whatever Redis does.

        Returns:
            As `health`.

        Raises:
            InvalidConfig: as for `health`.
        """
        asked = (each.asyncio.health(timeout) for each in self.aggregators.values())
        return probing.together(await asyncio.gather(*asked))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        for each in self.aggregators.values():
            await each.asyncio.start()
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<App of {', '.join(map(repr, self._aggregators)) or 'no aggregator yet'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return load, (place_of(self),)


def _for_each(
    aggregators: Iterable[AppAggregator[..., Any]],
    end: Callable[[AppAggregator[..., Any]], None],
) -> None:
    """Ends all aggregators; those with a flusher at the same time, since each may take long.

    Raises:
        Exception: the first error, after all have ended.
    """
    found = list(aggregators)
    running = [each for each in found if each.is_running]
    if running:
        with ThreadPoolExecutor(len(running)) as pool:
            ending = [pool.submit(end, each) for each in running]
        for ended in ending:
            ended.result()
    for each in found:
        if each not in running:
            end(each)


def _place(aggregator: AppAggregator[..., Any]) -> tuple[str, str]:
    return aggregator.__module__, aggregator.__qualname__
