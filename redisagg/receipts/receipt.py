"""Receipts of submitted tasks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redisagg.errors import RedisUnavailable
from redisagg.namespace import Namespace
from redisagg.protocol.operations import Operation, ask
from redisagg.protocol.scripts import Request, command
from redisagg.receipts.subscriptions import LoopSubscription, ThreadSubscription
from redisagg.receipts.waiting import Inbox, Slot, forget, open_answer
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.threads import Transport

_READS_AT_A_TIME = 4
"""Reads of a partition's answers at a time on one event loop. When a subscription begins, all that
wait read at once, and each read takes a connection."""


def _read_outcome(namespace: Namespace, group: bytes, task_id: bytes) -> Operation[Any]:
    """Reads the record of an outcome where the namespace is now; None if there is none.

    A process that only waits for outcomes would not learn otherwise that the namespace was moved.
    """
    while True:
        layout = namespace.keyspace.layout
        key = namespace.keyspace.partition_of(group).answer(group, task_id)
        record = yield from ask(command("GET", key))
        if record is not None:
            return record
        yield from namespace.check()
        if namespace.keyspace.layout == layout:
            return None


class ThreadAnswers:
    """What the receipts of an `Aggregator` share.

    Args:
        namespace: that of the aggregator.
        transport: reads what no message told.
    """

    def __init__(self, namespace: Namespace, transport: Transport) -> None:
        self._namespace = namespace
        self._transport = transport
        self._lock = threading.Lock()
        self._subscription: ThreadSubscription | None = None

    def inbox(self) -> Inbox:
        """The inbox of this process; subscribes at the first call."""
        subscription = self._subscription
        if subscription is None or not subscription.is_alive:
            with self._lock:
                subscription = self._subscription
                if subscription is None or not subscription.is_alive:
                    subscription = self._subscription = ThreadSubscription(self._namespace)
        return subscription.inbox

    def read(self, group: bytes, task_id: bytes) -> Any:
        """The record of the outcome, None if there is none, or the error in place of it."""
        try:
            return self._transport.once(_read_outcome(self._namespace, group, task_id))
        except RedisUnavailable as error:
            return error

    def close(self) -> None:
        """Ends the subscription."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()


class _Reads:
    """The reads of one partition's answers."""

    __slots__ = ("error", "failed_at", "slots")

    def __init__(self) -> None:
        self.slots = asyncio.Semaphore(_READS_AT_A_TIME)
        self.error: RedisUnavailable | None = None
        """Why the last read failed; None if it did not."""
        self.failed_at = 0.0
        """When it failed, on the monotonic clock."""


class AsyncAnswers:
    """What the receipts of an `AsyncAggregator` share on one event loop; as `ThreadAnswers`."""

    def __init__(self, namespace: Namespace, transport: AsyncTransport) -> None:
        self._namespace = namespace
        self._transport = transport
        self._subscription: LoopSubscription | None = None
        self._reads: defaultdict[bytes, _Reads] = defaultdict(_Reads)
        """By the label of a partition."""

    def inbox(self) -> Inbox:
        """The inbox of this event loop; subscribes at the first call."""
        subscription = self._subscription
        if subscription is None or not subscription.is_alive:
            subscription = self._subscription = LoopSubscription(self._namespace)
        return subscription.inbox

    async def read(self, group: bytes, task_id: bytes) -> Any:
        """The record of the outcome, None if there is none, or the error in place of it."""
        reads = self._reads[self._namespace.keyspace.partition_of(group).label]
        asked = time.monotonic()
        async with reads.slots:
            if reads.error is not None and reads.failed_at >= asked:
                return reads.error  # else each would wait in turn for a server that hangs
            try:
                record = await self._transport.once(_read_outcome(self._namespace, group, task_id))
            except RedisUnavailable as error:
                reads.error, reads.failed_at = error, time.monotonic()
                return error
            reads.error = None
            return record

    async def close(self) -> None:
        """Ends the subscription."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.close()


class _ReceiptBase:
    """The common base class of `Receipt` and `AsyncReceipt`."""

    __slots__ = ("_inbox", "_key", "_slot", "group_key", "task_id")

    def __init__(self, key: bytes, group_key: str, task_id: str, inbox: Inbox, new: bool) -> None:
        self.group_key = group_key
        """Text form of the key of the group."""
        self.task_id = task_id
        """Id of the task."""
        self._key = key
        self._inbox = inbox
        self._slot = inbox.slot(key, new=new)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.group_key!r}, {self.task_id!r})"

    def _target(self) -> tuple[bytes, bytes]:
        """The key of the group and the id of the task."""
        return self.group_key.encode(), self.task_id.encode()

    def _slot_in(self, inbox: Inbox) -> Slot:
        """The slot in this inbox: another one after a fork, or on another event loop."""
        if inbox is not self._inbox:
            self._inbox, self._slot = inbox, inbox.slot(self._key, new=False)
        return self._slot


class Receipt(_ReceiptBase):
    """The receipt of a task that `Aggregator.submit` has added. Thread-safe."""

    __slots__ = ("_answers",)

    def __init__(
        self, answers: ThreadAnswers, key: bytes, group_key: str, task_id: str, *, new: bool
    ) -> None:
        super().__init__(key, group_key, task_id, answers.inbox(), new)
        self._answers = answers

    def result(self, timeout: float | None = None) -> Any:
        """Waits for the outcome of the task, and returns its result.

        Args:
            timeout: seconds; None for no limit, 0 to look once.

        Returns:
            What the merge function returned for the task by `Results`.

        Raises:
            ResultTimeout: there is no outcome yet, or `result_ttl` is over.
            TaskFailed: the task failed, alone or with its batch.
            NoResult: the merge function returned no result for the task.
            TaskCancelled: the task was cancelled.
            RedisAggError: Redis refused to read it.
        """
        slot = self._slot_in(self._answers.inbox())
        if slot.record is not None:
            return open_answer(slot.record, self._key, self.task_id)
        gate = threading.Lock()
        gate.acquire()

        def wake() -> None:
            with suppress(RuntimeError):  # the gate is open already
                gate.release()

        slot.wakers.append(wake)
        try:
            steps, reply = slot.steps(timeout), None
            while True:
                step = steps.send(reply)
                if isinstance(step, Request):
                    reply = self._answers.read(*self._target())
                else:
                    reply = None
                    gate.acquire(timeout=step)
        except StopIteration as stop:
            return open_answer(stop.value, self._key, self.task_id)
        finally:
            forget(slot.wakers, wake)


class AsyncReceipt(_ReceiptBase):
    """The receipt of a task that `AsyncAggregator.submit` has added."""

    __slots__ = ("_answers_here",)

    def __init__(
        self,
        answers_here: Callable[[], AsyncAnswers],
        key: bytes,
        group_key: str,
        task_id: str,
        *,
        new: bool,
    ) -> None:
        super().__init__(key, group_key, task_id, answers_here().inbox(), new)
        self._answers_here = answers_here

    async def result(self, timeout: float | None = None) -> Any:
        """Waits for the outcome of the task, and returns its result.

        Args:
            timeout: seconds; None for no limit, 0 to look once.

        Returns:
            What the merge function returned for the task by `Results`.

        Raises:
            ResultTimeout: there is no outcome yet, or `result_ttl` is over.
            TaskFailed: the task failed, alone or with its batch.
            NoResult: the merge function returned no result for the task.
            TaskCancelled: the task was cancelled.
            RedisAggError: Redis refused to read it.
        """
        answers = self._answers_here()
        slot = self._slot_in(answers.inbox())
        if slot.record is not None:
            return open_answer(slot.record, self._key, self.task_id)
        loop = asyncio.get_running_loop()
        woken = loop.create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        slot.wakers.append(wake)
        try:
            steps, reply = slot.steps(timeout), None
            while True:
                step = steps.send(reply)
                if isinstance(step, Request):
                    reply = await answers.read(*self._target())
                    continue
                reply, timer = None, loop.call_later(step, wake)
                try:
                    await woken
                finally:
                    timer.cancel()
                woken = loop.create_future()
        except StopIteration as stop:
            return open_answer(stop.value, self._key, self.task_id)
        finally:
            forget(slot.wakers, wake)
