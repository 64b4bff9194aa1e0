"""Subscriptions to the answers of a namespace, by the listener that flushers use too.

So there is one subscription for all threads of a process, and one for each event loop, whatever the
number of aggregators, flushers and receipts.
"""

from __future__ import annotations

import asyncio
import threading

from redisagg.durations import seconds
from redisagg.errors import FlusherFailed
from redisagg.flusher.connections import shared_connections
from redisagg.flusher.event_loop import LoopThread, enter_shared_thread
from redisagg.flusher.waiting import cancel_and_wait
from redisagg.namespace import Namespace
from redisagg.receipts.waiting import Inbox

_CLOSE_TIMEOUT = 0.2
"""Seconds for which `ThreadSubscription.close` waits for the end of the subscription."""


async def _listen(namespace: Namespace, inbox: Inbox) -> None:
    """Hands messages to an inbox until it is cancelled."""
    silence = min(seconds(namespace.config.lease_time) / 3, 5.0)
    channel = namespace.keyspace.answers_channel
    async with shared_connections(namespace.flusher_endpoint(), silence) as connections:
        connections.listener.add(channel, inbox.handle)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            connections.listener.remove(channel, inbox.handle)


class LoopSubscription:
    """A subscription on the running event loop, which begins now."""

    def __init__(self, namespace: Namespace) -> None:
        self.inbox = Inbox()
        self._task = asyncio.create_task(_listen(namespace, self.inbox))

    @property
    def is_alive(self) -> bool:
        """Whether nothing has ended it."""
        return not self._task.done()

    async def close(self) -> None:
        """Ends the subscription."""
        await cancel_and_wait(self._task)


class ThreadSubscription:
    """A subscription for the threads of this process, which begins now.

    If no thread can be started for it, there are no messages, and receipts look by themselves.
    """

    def __init__(self, namespace: Namespace) -> None:
        self.inbox = Inbox()
        self._namespace = namespace
        self._task: asyncio.Task[None] | None = None
        self._ended = threading.Event()
        self._thread: LoopThread | None = None
        try:
            self._thread = enter_shared_thread(self._end)
        except FlusherFailed:
            return
        self._thread.call(self._begin)

    @property
    def is_alive(self) -> bool:
        """Whether it goes on in this process: a forked child has none of its parent's."""
        return self._thread is None or (self._thread.is_alive and not self._ended.is_set())

    def close(self) -> None:
        """Ends the subscription, and waits for a moment until it has ended."""
        if self._thread is not None and self._thread.is_alive:
            self._thread.call(self._cancel)
            self._ended.wait(_CLOSE_TIMEOUT)

    def _begin(self) -> None:
        listening = _listen(self._namespace, self.inbox)
        self._task = asyncio.get_running_loop().create_task(listening)
        self._task.add_done_callback(lambda _: self._end(None))

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, error: BaseException | None) -> None:
        if not self._ended.is_set() and self._thread is not None:
            self._ended.set()
            self._thread.leave(self._end)
