"""Celery tasks that take many calls at once, gathered in Redis; docs/celery-batches.md.

`Batches` is the place of the batch tasks of a Celery app, and an `App`: a worker of redisagg runs
its flushers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

try:
    import celery
    from celery import signals
    from celery.exceptions import Ignore
    from kombu import serialization
    from kombu.utils.uuid import uuid
except ImportError as error:
    raise ImportError(
        "redisagg.contrib.celery needs Celery; install it with: pip install 'redisagg[celery]'"
    ) from error

from redisagg.app import App, AppAggregator
from redisagg.app.app import AggregatorSettings
from redisagg.durations import Duration
from redisagg.payload import to_builtin
from redisagg.settings import Settings
from redisagg.sinks import CelerySink
from redisagg.task import GroupKey, Task
from redisagg.texts import logger

if TYPE_CHECKING:
    from celery.result import AsyncResult
    from typing_extensions import Unpack

    _CeleryTask = celery.Task[Any, Any]
else:
    _CeleryTask = celery.Task

_log = logger("celery")

_REQUESTS = "redisagg_requests"
"""The only keyword argument of the message of a batch."""

_ONE_GROUP = "all"

_REFUSED = ("countdown", "eta", "expires", "link", "link_error", "chain", "chord")
"""Options of `apply_async` that would have to wait for a batch, or to be told of its end."""


@dataclass(frozen=True)
class Request:
    """A call of a batch task, as its function receives it, in the form of celery-batches."""

    id: str
    """The id of the `AsyncResult` that the caller has."""
    name: str
    """The name of the task."""
    args: tuple[Any, ...] = ()
    """The positional arguments of the call."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """The keyword arguments of the call."""
    delivery_info: Any = None
    """How the batch was delivered."""
    hostname: str | None = None
    """The name of the worker."""
    ignore_result: bool = False
    """Whether the task has no results."""
    reply_to: str | None = None
    """Always None; celery-batches has this field."""
    correlation_id: str | None = None
    """Always None; celery-batches has this field."""
    request_dict: dict[str, Any] = field(default_factory=dict)
    """Always empty; celery-batches has this field."""
    chord: Any = None
    """Always None; celery-batches has this field."""


class BatchTask(_CeleryTask):
    """A Celery task whose calls are gathered, and whose function takes a list of them."""

    abstract = True
    typing = False  # the function takes a list of what callers pass
    aggregator: AppAggregator[..., Any]
    """What gathers the calls."""
    batch_function: Callable[[list[Request]], Any]
    """The decorated function."""
    group_by: Callable[..., GroupKey] | None = None

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        *,
        group_key: GroupKey | None = None,
        **options: Any,
    ) -> AsyncResult[Any]:
        """Adds a call to its group; returns when Redis has stored it. `delay` calls this.

        Args:
            args: the positional arguments of the call.
            kwargs: its keyword arguments.
            task_id: its id; a new one if None.
            producer, link, link_error, shadow: as Celery passes them; a call can have no link.
            group_key: the group, in place of that of `group_by`.
            options: what Celery itself passes. How a batch is routed is set in the decorator.

        Returns:
            The result of this call, which the function may set by `mark_as_done`.

        Raises:
            TypeError: an option can't be had for a call in a batch, such as `eta` or `link`.
            kombu.exceptions.EncodeError: Celery's serializer has no form for the arguments.
            RedisAggError: the call could not be added; see `Aggregator.add_task`.
        """
        if not args and kwargs and kwargs.keys() == {_REQUESTS}:  # a retry of a whole batch
            return super().apply_async(
                args, kwargs, task_id, producer, link, link_error, shadow, **options
            )
        options.update(link=link, link_error=link_error)
        if wrong := [name for name in _REFUSED if options.get(name)]:
            raise TypeError(f"a call of the batch task {self.name} can't have {wrong[0]}")
        if self.app.conf.task_always_eager:
            return self.apply(args, kwargs, task_id=task_id or uuid())
        body: dict[str, Any] = {"args": list(args or ()), "kwargs": dict(kwargs or {})}
        serialization.dumps(body, self.serializer or self.app.conf.task_serializer)  # a check
        if group_key is None:
            group_key = _ONE_GROUP
            if self.group_by is not None:
                group_key = self.group_by(*body["args"], **body["kwargs"])
        task_id = task_id or uuid()
        self.aggregator.add_task(Task(self.name, body, group_key, id=task_id))
        return self.AsyncResult(task_id)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """Is called for a message, by `apply`, or as the function."""
        request = self.request
        if request.called_directly:
            return type(self).batch_function(*args, **kwargs)
        if not args and kwargs.keys() == {_REQUESTS}:
            calls = kwargs[_REQUESTS]
        elif request.is_eager:
            calls = [{"id": request.id, "args": args, "kwargs": kwargs}]
        else:  # sent by its name, or before the task was a batch task
            self.apply_async(args, kwargs, task_id=request.id)
            raise Ignore
        return type(self).batch_function(
            [
                Request(
                    each["id"],
                    self.name,
                    tuple(each["args"]),
                    each["kwargs"],
                    delivery_info=request.delivery_info,
                    hostname=request.hostname,
                    ignore_result=bool(self.ignore_result),
                )
                for each in calls
            ]
        )


class Batches(App):
    """The batch tasks of a Celery app.

    ``redisagg worker MODULE:ATTRIBUTE`` gathers their calls; Celery's workers run their functions.

    Args:
        celery_app: the Celery app, whose broker, routes and serializer are used.
        url: URL of the Redis in which calls are gathered, as for `Aggregator`; that of the settings
            if None. It needs not be the broker.
        settings: settings of all tasks; `Settings()` if None.
        flush_in_worker: whether each worker of the Celery app runs the flushers too, in threads of
            its main process. Not with its pools of greenlets, gevent and eventlet.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
    """

    def __init__(
        self,
        celery_app: celery.Celery,
        url: str | None = None,
        *,
        settings: Settings | None = None,
        flush_in_worker: bool = False,
    ) -> None:
        sink = CelerySink(celery_app, arguments="keywords", encode=to_builtin)
        super().__init__(url, sink=sink, settings=settings)
        self._celery = celery_app
        if flush_in_worker:
            signals.worker_ready.connect(self._start_in_worker, weak=False)
            signals.worker_shutdown.connect(self._stop_in_worker, weak=False)

    def task(
        self,
        *,
        flush_every: int = 10,
        flush_interval: Duration = 30.0,
        group_by: Callable[..., GroupKey] | None = None,
        name: str | None = None,
        namespace: str | None = None,
        options: Mapping[str, Any] | None = None,
        **config: Unpack[AggregatorSettings],
    ) -> Callable[[Callable[[list[Request]], Any]], BatchTask]:
        """Makes a batch task from the function that this decorates.

        Args:
            flush_every: number of calls after which a batch is sent at once.
            flush_interval: seconds that a call waits for others at most.
            group_by: takes the arguments of a call, and returns the key of its group: a batch has
                calls of one group. None for one group of all calls.
            name: name of the Celery task; by default that of the function with its module.
            namespace: name of the namespace in Redis; that of the task if None.
            options: options of Celery's own decorator, such as ``{"acks_late": True}``.
            config: further settings of `AggregationConfig`.

        Returns:
            A decorator of a function that takes a list of `Request`. It returns a Celery task: its
            `delay` and `apply_async` add a call.

        Raises:
            InvalidConfig: an argument is out of range or of the wrong type, or the namespace is
                that of another task. The decorator raises it too.
        """
        settings: AggregatorSettings = {
            "group_grace_period": None,
            "group_max_delay": flush_interval,
            "group_max_size": flush_every,
            **config,
        }

        def decorate(function: Callable[[list[Request]], Any]) -> BatchTask:
            named = name or self._celery.gen_task_name(
                getattr(function, "__name__", ""), getattr(function, "__module__", "")
            )

            @functools.wraps(function)
            def collect(group: str, tasks: list[Task]) -> Task:
                calls = [{"id": task.id, **task.payload} for task in tasks]
                return Task(named, {_REQUESTS: calls})

            @functools.wraps(function)
            def run(task: BatchTask, *args: Any, **kwargs: Any) -> Any:
                return task._run(*args, **kwargs)

            make: Any = self._celery.task
            task: BatchTask = make(
                name=named,
                base=BatchTask,
                bind=True,
                shared=False,  # not of the other Celery apps of the process
                aggregator=self.aggregator(namespace or named, **settings)(collect),
                batch_function=staticmethod(function),
                group_by=None if group_by is None else staticmethod(group_by),
                **(options or {}),
            )(run)
            return task

        return decorate

    def _start_in_worker(self, sender: Any = None, **details: Any) -> None:
        if getattr(sender, "app", None) is self._celery:
            try:
                self.start()
            except Exception as error:  # Celery logs no more than that a receiver failed
                _log.error("the flushers did not start in this worker: %s", error)
                raise

    def _stop_in_worker(self, **details: Any) -> None:
        self.stop()
