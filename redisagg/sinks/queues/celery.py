"""Celery as the queue, with any of its brokers."""

from __future__ import annotations

from typing import Any

from redisagg.errors import InvalidConfig
from redisagg.payload import to_plain
from redisagg.sinks.base import BlockingSink, MergedTask, SinkContext
from redisagg.sinks.function_calls import (
    Arguments,
    Call,
    Encode,
    check_arguments,
    check_options,
    headers_of,
    options_for,
)
from redisagg.sinks.urls import SinkUrl, require
from redisagg.task import Task

OPTIONS = (
    *("queue", "exchange", "routing_key", "priority", "countdown", "eta", "expires"),
    *("time_limit", "soft_time_limit", "serializer", "compression", "delivery_mode"),
    *("ignore_result", "shadow", "retry", "retry_policy", "link", "link_error"),
)
"""The arguments of Celery's `send_task` that a sink and `Task.options` can set."""


class CelerySink(BlockingSink):
    """Sends merged tasks to Celery workers, at least once, with the batch id as the task id.

    Celery does not look for an id that it has seen: a flusher that dies between the send and the
    removal of the batch leaves it to be sent again, with the same id.

    Args:
        app: the URL of a broker, or a `celery.Celery` whose broker, routes and serializer are
            used. With ``executor="process"`` the app has to be importable.
        task: the name of the Celery task; None takes the merged task's type.
        queue: None leaves it to Celery's routes.
        arguments: how the Celery task gets the payload, see
            `redisagg.sinks.function_calls.Arguments`.
        encode: turns the payload into what Celery's serializer takes; by default into what JSON
            knows.
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
        **options: Any,
    ) -> None:
        celery = require("celery", "celery")
        if not isinstance(app, celery.Celery) and not (isinstance(app, str) and app):
            raise InvalidConfig(f"CelerySink takes an app or the URL of a broker, not {app!r}")
        check_arguments(arguments)
        check_options(options, OPTIONS)
        self.app = app
        self.task = task
        self.arguments = arguments
        self.encode = encode
        self.options = options | ({"queue": queue} if queue else {})
        self._sender: Any = None
        self._zero_goes_first = False

    @classmethod
    def from_url(cls, url: SinkUrl) -> CelerySink:
        """``celery://QUEUE?broker=redis://HOST:6379/0&task=NAME&arguments=auto``

        An empty QUEUE leaves it to Celery's routes.
        """
        return cls(
            url.required("broker"),
            task=url.option("task", str),
            queue=url.target or None,
            arguments=url.option("arguments", str, "auto"),
        )

    async def open(self, context: SinkContext) -> None:
        celery = require("celery", "celery")
        # An app of ours must not become the current one: that is the user's.
        self._sender = (
            celery.Celery("redisagg", broker=self.app, set_as_current=False)
            if isinstance(self.app, str)
            else self.app
        )
        # Asking for it connects to nothing yet.
        transport = self._sender.connection_for_write().transport
        self._zero_goes_first = transport.driver_type == "redis"

    async def close(self) -> None:
        # Connections stay: kombu shares them by URL with every other app of this process.
        if self._sender is not self.app:
            self._sender.close()
        self._sender = None

    def deliver_blocking(self, batch: MergedTask) -> None:
        call = Call.of(batch.task, self.task, self.arguments, self.encode)
        self._sender.send_task(
            call.name,
            args=call.args,
            kwargs=call.kwargs,
            task_id=batch.batch_id,
            headers=_headers(batch.task),
            **{
                **self._priority(batch.task),
                **options_for(batch.task, self.options, OPTIONS),
            },
        )

    def _priority(self, task: Task) -> dict[str, int]:
        """The priority on the broker's scale of 0 to 9, where a message without one counts as 0."""
        if task.priority == 0:
            return {}
        priority = -task.priority if self._zero_goes_first else task.priority
        return {"priority": min(max(priority, 0), 9)}


def _headers(task: Task) -> dict[str, str]:
    """The headers of a message; Celery itself keeps the call among them."""
    context = require("celery.app.task", "celery").Context
    own = {*vars(context), "lang", "task", "argsrepr", "kwargsrepr", "compression"}
    return headers_of(task, own, "Celery")
