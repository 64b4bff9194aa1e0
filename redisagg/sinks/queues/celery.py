"""Celery as the queue, with any of its brokers."""

from __future__ import annotations

from typing import Any

from redisagg.durations import Duration, to_seconds
from redisagg.errors import InvalidConfig
from redisagg.payload import to_plain
from redisagg.sinks.base import BlockingSink, MergedTask, SinkContext
from redisagg.sinks.clients import with_timeouts
from redisagg.sinks.extras import require
from redisagg.sinks.function_calls import Arguments, Encode, FunctionCallOptions, message_headers
from redisagg.sinks.urls import SinkUrl, check_url
from redisagg.task import Task

OPTIONS = (
    *("queue", "exchange", "routing_key", "priority", "countdown", "eta", "expires"),
    *("time_limit", "soft_time_limit", "serializer", "compression", "delivery_mode"),
    *("ignore_result", "shadow", "retry", "retry_policy", "link", "link_error"),
)
"""The arguments of Celery's `send_task` that a sink and `Task.options` can set."""


class CelerySink(BlockingSink):
    """Sends merged tasks to Celery workers, at least once, with the batch id as the task id.

    Celery does not check ids: a batch whose flusher dies between the send and the removal of the
    batch is sent again, with the same id.

    Args:
        app: the URL of a broker, or a `celery.Celery` whose broker, routes and serializer are
            used. With ``executor="process"`` the app has to be importable.
        task: the name of the Celery task; None takes the type of the merged task.
        queue: the name of the queue; None leaves the choice to Celery's routes.
        arguments: how the Celery task receives the payload, see `Arguments`.
        encode: converts the payload for Celery's serializer; default `redisagg.payload.to_plain`.
        timeout: seconds (or a `timedelta`) after which a delivery has failed.
        concurrency: the number of deliveries that a flusher makes at the same time; None (default)
            for 16.
        **options: further arguments of `send_task` for all tasks, see `OPTIONS`.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
        SinkError: Celery is not installed.
    """

    def __init__(
        self,
        app: Any,
        *,
        task: str | None = None,
        queue: str | None = None,
        arguments: Arguments = "auto",
        encode: Encode = to_plain,
        timeout: Duration = 30.0,
        concurrency: int | None = None,
        **options: Any,
    ) -> None:
        kind = require("celery", "celery").Celery
        check_url(app, "CelerySink takes an app or the URL of a broker", kind)
        if queue:
            options["queue"] = queue
        self.timeout = to_seconds(timeout, "timeout", InvalidConfig)
        self._limit_to(concurrency)
        self._calls = FunctionCallOptions(
            task, OPTIONS, options, arguments=arguments, encode=encode
        )
        self.takes_json = self._calls.takes_json
        self._app = app
        self._sender: Any = None
        self._zero_is_first = False

    @classmethod
    def from_url(cls, url: SinkUrl) -> CelerySink:
        """Parses ``celery://QUEUE?broker=redis://HOST:6379/0&task=NAME&arguments=auto``.

        An empty QUEUE leaves the choice to Celery's routes.
        """
        return cls(
            url.required("broker"),
            **url.given("queue", arguments=str, task=str, timeout=float, concurrency=int),
        )

    async def open(self, context: SinkContext) -> None:
        self._sender = self._app
        if isinstance(self._app, str):
            make = require("celery", "celery").Celery
            # The current app of the process stays that of the user.
            self._sender = make("redisagg", broker=self._app, set_as_current=False)
            self._sender.conf.update(_limits(self._app, self.timeout))
        # This makes no connection yet.
        transport = self._sender.connection_for_write().transport
        self._zero_is_first = transport.driver_type == "redis"

    async def close(self) -> None:
        # Connections stay open: kombu shares them, by URL, with all other apps of the process.
        if self._sender is not self._app:
            self._sender.close()
        self._sender = None

    def deliver_blocking(self, merged: MergedTask) -> None:
        call = self._calls.call(merged.task)
        self._sender.send_task(
            call.name,
            args=call.args,
            kwargs=call.kwargs,
            task_id=merged.batch_id,
            headers=_headers(merged.task),
            **{**self._priority(merged.task), **call.options},
        )

    def _priority(self, task: Task) -> dict[str, int]:
        """The priority on the broker's scale of 0 to 9, where 0 is the default."""
        if task.priority == 0:
            return {}
        priority = -task.priority if self._zero_is_first else task.priority
        return {"priority": min(max(priority, 0), 9)}


def _limits(broker: str, timeout: float) -> dict[str, Any]:
    """The settings of an app whose connections give up a silent broker."""
    scheme = broker.partition(":")[0]
    options: dict[str, Any] = {}
    if scheme in {"redis", "rediss", "sentinel"}:
        options = with_timeouts(timeout)
    elif scheme in {"amqp", "amqps", "pyamqp"}:
        options = {"read_timeout": timeout, "write_timeout": timeout}
    return {"broker_connection_timeout": timeout, "broker_transport_options": options}


def _headers(task: Task) -> dict[str, str]:
    """The headers of a message; Celery keeps the fields of the call among them."""
    context = require("celery.app.task", "celery").Context
    reserved = {*vars(context), "lang", "task", "argsrepr", "kwargsrepr", "compression"}
    return message_headers(task, reserved, "Celery")
