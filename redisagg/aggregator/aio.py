"""The aggregator for asyncio; `redisagg.aggregator.threads` is the one for blocking code."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncIterable, Callable, Collection, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Literal, TypeVar

from redis.asyncio import Redis

from redisagg.aggregator import reading
from redisagg.aggregator.base import (
    CLOSE_TIMEOUT,
    FORGET_TIMEOUT,
    GROUPS_PER_PAGE,
    IDLE_POLL_INTERVAL,
    KEPT_BYTES,
    KEPT_OVERHEAD,
    OBSERVE_TIMEOUT,
    TASKS_PER_PAGE,
    AggregatorBase,
    is_idle,
    paused_by,
)
from redisagg.aggregator.bounded import await_within
from redisagg.aggregator.health import ask_on_loop
from redisagg.config import AggregationConfig
from redisagg.durations import Duration, seconds
from redisagg.errors import (
    AggregatorFull,
    FlusherFailed,
    NamespaceMismatch,
    RedisAggError,
    RedisUnavailable,
)
from redisagg.flusher.merging import check_executor
from redisagg.flusher.run import FlusherTask, end_by
from redisagg.namespace import Namespace
from redisagg.operations import (
    explaining,
    inspecting,
    listing,
    locating,
    observing,
    policing,
    remembering,
    steering,
)
from redisagg.operations.listing import GroupOrder
from redisagg.operations.remembering import HistorySpan
from redisagg.policies import Policy, check_pattern
from redisagg.producer.aio import AsyncAdder, AsyncStream, aiter_of
from redisagg.producer.options import AddOptions
from redisagg.producer.sequences import SequencePool, forget_calls
from redisagg.protocol.clock import ClockUnread
from redisagg.protocol.entries import EncodedTask
from redisagg.protocol.operations import Operation
from redisagg.protocol.policies import STALE
from redisagg.protocol.registration import NamespaceMoved
from redisagg.receipts import AsyncReceipt
from redisagg.receipts.receipt import AsyncAnswers
from redisagg.sinks import Sink, SinkPage
from redisagg.sinks.base import Cursor
from redisagg.sinks.routing import Route
from redisagg.task import GroupKey, Task, check_moment, group_key_bytes, moment_ms, task_id_bytes
from redisagg.texts import logger
from redisagg.timeline import BatchTimeline
from redisagg.transport.aio import AsyncTransport
from redisagg.transport.endpoint import AnyClient, AsyncClient, aclose, waits_without_end
from redisagg.transport.uncancelled import Uncancelled
from redisagg.views import (
    AppliedPolicy,
    BatchPage,
    BatchState,
    DeadLetter,
    DeadReason,
    Explanation,
    FlusherState,
    GroupList,
    GroupPage,
    GroupPlace,
    GroupState,
    Health,
    History,
    Location,
    Overview,
    Stats,
    Trouble,
)

_log = logger("producer")

T = TypeVar("T")


class AsyncAggregator(AggregatorBase):
    """Gathers tasks in groups on Redis, and flushes groups that are due, on an event loop.

    Any number of processes on any number of machines may share a namespace. Each may add tasks,
    run a flusher, or both. An aggregator may be used on several event loops, one after
    the other or in several threads: it has a client of its own for each one after the first. A
    flusher runs on the loop on which it was started, and ends with that.

    Args:
        name: name of the namespace: 1 to 64 letters, digits, dots, underscores and hyphens.
        redis: a URL (see `redisagg.transport.endpoint.endpoint_of`) or a client of redis-py:
            `redis.asyncio.Redis` or `redis.asyncio.RedisCluster`. Of a blocking client and of a
            `RedisCluster` it uses the settings only.
        config: settings; `AggregationConfig()` if None.
        sink: destination of merged tasks: a sink, a URL such as ``"stream://email-batches"``, a
            function of the merged task that returns a sink, or None for the stream
            ``NAME-batches``.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.

    All methods that talk to Redis raise `RedisUnavailable` if it can't be reached for
    `add_timeout` seconds, and `AuthenticationFailed`, `RedisReadOnly`, `RedisOutOfMemory`,
    `KeyConflict` or `NamespaceMismatch` if Redis answers so.
    """

    def __init__(
        self,
        name: str,
        redis: AnyClient = "redis://localhost:6379/0",
        *,
        config: AggregationConfig | None = None,
        sink: Sink | Route | str | None = None,
    ) -> None:
        super().__init__(name, redis, config, sink)
        self._client = None if not isinstance(redis, Redis) or waits_without_end(redis) else redis
        """The caller's client, if it can be used."""
        self._loop_of_client: list[asyncio.AbstractEventLoop] = []
        """The loop on which this client is used: the first one."""
        self._options = AddOptions.of(
            self._keyspace, self._config, self._namespace.durability, self._namespace.observers
        )
        self._sequences = SequencePool()
        self._on_loops: dict[asyncio.AbstractEventLoop, _OnLoop] = {}
        self._flusher: FlusherTask | None = None
        self._loop_of_flusher: asyncio.AbstractEventLoop | None = None

    # --- adding ----------------------------------------------------------------------------

    async def add_task(self, task: Task) -> str:
        """Adds a task to its group; returns when Redis has stored it.

        With `min_replicas` or `wait_for_fsync` it waits for the replicas or the disk too.
        Concurrent calls share round trips.

        Args:
            task: the task; adding an id that already waits in the group changes nothing.

        Returns:
            The id of the task.

        Raises:
            InvalidTask: a field of the task is wrong; subclasses are `PayloadError`,
                `TaskTooLarge` and `InvalidGroupKey`. Nothing was written.
            AggregatorFull: `max_pending_tasks` or `max_pending_bytes` was reached, or Redis was
                out of memory, for `full_timeout` seconds. Nothing was written.
            NotReplicated: too few replicas acknowledged the task within `add_timeout` seconds. The
                primary has stored it.
        """
        try:
            try:
                encoded = self._namespace.encoder(task)
            except ClockUnread:
                encoded = await self._encode_by_clock(task)
            if not self._registered:
                await self._register()
            # As `_here`, but without the cost of a call.
            adder = (self._on_loops.get(asyncio.get_running_loop()) or self._here()).adder
            if adder.lines.by_group and encoded.group in adder.lines.by_group:
                await adder.add_in_turn(encoded, self._full_timeout)
                return task.id
            try:
                await adder.add(encoded)
            except AggregatorFull as error:
                if not self._full_timeout:
                    raise
                await adder.add_in_turn(encoded, self._full_timeout, error)
            return task.id
        except RedisAggError as error:
            self._count_refused(error)
            raise

    async def submit(self, task: Task) -> AsyncReceipt:
        """Adds a task whose outcome its producer wants to know.

        Args:
            task: the task, as for `add_task`. If its id waits in the group already, the receipt is
                for the task that waits; one that was added by `add_task` has no outcome.

        Returns:
            A receipt. The outcome is kept for `result_ttl` seconds.

        Raises:
            InvalidTask, AggregatorFull, NotReplicated: as for `add_task`.
        """
        try:
            try:
                encoded = self._namespace.encoder(task)
            except ClockUnread:
                encoded = await self._encode_by_clock(task)
            encoded = self._namespace.submitted(encoded)
            if not self._registered:
                await self._register()
            receipt = self._receipt(encoded.group, encoded.id, new=True)
            adder = self._here().adder
            if encoded.group in adder.lines.by_group:
                await adder.add_in_turn(encoded, self._full_timeout)
                return receipt
            try:
                await adder.add(encoded)
            except AggregatorFull as error:
                if not self._full_timeout:
                    raise
                await adder.add_in_turn(encoded, self._full_timeout, error)
            return receipt
        except RedisAggError as error:
            self._count_refused(error)
            raise

    async def receipt(self, group_key: GroupKey, task_id: str) -> AsyncReceipt:
        """Makes the receipt of a task again that any process has submitted.

        Args:
            group_key: key of its group.
            task_id: id of the task.

        Returns:
            A receipt; whether there is such a task is not checked.

        Raises:
            InvalidGroupKey: the group key is wrong.
            InvalidTask: the task id is wrong.
        """
        return self._receipt(group_key_bytes(group_key), task_id_bytes(task_id), new=False)

    def _receipt(self, group: bytes, task_id: bytes, *, new: bool) -> AsyncReceipt:
        key = self._keyspace.partition_of(group).answer(group, task_id)
        return AsyncReceipt(self._answers_here, key, group.decode(), task_id.decode(), new=new)

    def _answers_here(self) -> AsyncAnswers:
        here = self._here()
        if here.answers is None:
            here.answers = AsyncAnswers(self._namespace, here.transport)
        return here.answers

    async def add_tasks(
        self,
        tasks: Iterable[Task] | AsyncIterable[Task],
        *,
        progress: Callable[[int], object] | None = None,
        ids: bool = True,
    ) -> list[str]:
        """Adds many tasks in few round trips, in order.

        A collection (such as a list or a tuple) is checked as a whole before anything is written.
        Any other iterable is a stream: its tasks are checked and written as they come.

        Args:
            tasks: the tasks; an asynchronous iterable is a stream too.
            progress: function that is called from time to time with the number of tasks
                acknowledged so far.
            ids: whether to return the ids. With False, a stream of any length takes constant
                memory.

        Returns:
            The ids of the tasks in order; an empty list with ``ids=False``.

        Raises:
            InvalidTask: a field of a task is wrong; the message begins with its index, such as
                ``tasks[3]``. Nothing was written; of a stream, only the tasks before it.
            RedisAggError: Redis refused some tasks; this is the first error. The others were
                added, except those after an `AggregatorFull` that lasted for `full_timeout`
                seconds. Adding all of them again is safe while they wait.
        """
        ahead: list[EncodedTask] = []
        if isinstance(tasks, Collection):
            tasks, room = tuple(tasks), KEPT_BYTES
            for index, task in enumerate(tasks):
                encoded = self._encode(task, index) or await self._encode_by_clock(task)
                if room > 0:
                    ahead.append(encoded)
                    room -= KEPT_OVERHEAD + len(encoded.body)
        if not self._registered:
            await self._register()
        index = 0
        collected: list[str] = []
        stream = AsyncStream(self._here().adder, progress, self._full_timeout)
        try:
            async for task in aiter_of(tasks):
                if index < len(ahead):
                    encoded = ahead[index]
                else:
                    encoded = self._encode(task, index) or await self._encode_by_clock(task)
                await stream.put(encoded)
                index += 1
                if ids:
                    collected.append(task.id)
            await stream.finish()
        finally:
            await stream.close()
        return collected

    async def _encode_by_clock(self, task: Task) -> EncodedTask:
        """Encodes a task with a schedule when Redis' clock was not read lately.

        The last time is good enough if the clock can't be read now: the task may go to another node
        of a cluster, and else its add says what is wrong.

        Raises:
            RedisAggError: the clock can't be read, and never was.
        """
        clock, here = self._namespace.clock, self._here()

        async def read() -> None:
            await here.transport.run(clock.read(), once=clock.is_known)

        while True:
            if here.reading is None or here.reading.done:
                here.reading = Uncancelled(read)
            try:  # concurrent callers share the round trip
                await here.reading.result()
            except RedisAggError as error:
                if not clock.is_known:
                    raise copy.copy(error) from error.__cause__
                clock.keep()
                _log.warning("Redis' clock can't be read (%s); its last time stays in use", error)
            with suppress(ClockUnread):  # if so much time has passed since
                return self._namespace.encoder(task)

    # --- flushing --------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts a flusher on this event loop; has no effect while one runs.

        Raises:
            InvalidConfig: ``executor="process"`` in a process that can't have worker processes.
            RedisAggError: Redis can't be used; see the class. `FlusherFailed`, a subclass: a
                flusher was started on another event loop, which is stopped now but not closed.
                While that loop runs, the flusher runs there, and the call has no effect.
        """
        self._check_loop_of_flusher()
        if not self.is_running:
            check_executor(self._config)
            await self._register_flusher()
        if not self.is_running:  # another call may have started one meanwhile
            self._start_flusher(self._namespace)

    @property
    def is_running(self) -> bool:
        """Whether a flusher of this aggregator runs: it was started, and nothing has ended it.

        The logger `redisagg` has the error that ended a flusher.
        """
        if self._flusher is None or self._loop_of_flusher is None:
            return False
        return self._flusher.is_running and not self._loop_of_flusher.is_closed()

    def _start_flusher(self, namespace: Namespace) -> FlusherTask:
        self._loop_of_flusher = asyncio.get_running_loop()
        self._flusher = flusher = FlusherTask(namespace)
        return flusher

    def _check_loop_of_flusher(self) -> None:
        """Raises `FlusherFailed` if there is a flusher on another event loop that is stopped."""
        loop = self._loop_of_flusher
        if self.is_running and loop is not None and not loop.is_running():
            raise FlusherFailed(
                "the flusher of this aggregator was started on another event loop, which does not "
                "run now; stop the flusher there, or close that loop"
            )

    async def stop(self, flush: bool = False) -> None:
        """Stops the flusher, which first finishes running merges and then gives up its leases.

        Returns within `shutdown_timeout` and 2 seconds, whatever a merge function, a sink or Redis
        does, unless one of them blocks the event loop.

        A flusher that was started on an event loop of another thread is stopped there.

        Args:
            flush: whether to make all groups due first and wait until their tasks are enqueued, for
                at most `shutdown_timeout` seconds.

        Raises:
            RedisAggError: with `flush`, Redis can't be used; see the class. The flusher is stopped
                all the same. `FlusherFailed`, a subclass: the flusher was started on another event
                loop, which is stopped now but not closed.
        """
        self._check_loop_of_flusher()
        running = self.is_running
        flusher, self._flusher = self._flusher, None
        loop = self._loop_of_flusher
        if flusher is None or loop is None or (not running and loop.is_closed()):
            return
        until = end_by(self._namespace)
        try:
            if flush:
                await self._flush_within(seconds(self._config.shutdown_timeout))
        finally:
            if loop is asyncio.get_running_loop():
                await flusher.stop(until)
            elif running:
                stopping = asyncio.run_coroutine_threadsafe(flusher.stop(until), loop)
                await await_within(until - time.monotonic(), _result(stopping))

    async def _flush_within(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        if not await await_within(timeout, self.flush_all()):
            raise RedisUnavailable(f"the groups could not be made due within {timeout:g} s")
        left = end - time.monotonic()
        await await_within(left, self.wait_until_idle(left))

    async def run(self, *, concurrency: int | None = None) -> None:
        """Runs a flusher until SIGTERM or SIGINT; a second signal ends the process at once.

        Outside the main thread, where Python can't handle signals, it runs until `stop` is called.
        Returns within `shutdown_timeout` and 2 seconds after the signal, unless a merge function or
        a sink blocks the event loop.

        Args:
            concurrency: number of batches merged at the same time, in place of the setting.

        Raises:
            InvalidConfig: `concurrency` is out of range, or as for `start`.
            FlusherFailed: a flusher of this aggregator runs already.
            RedisAggError: Redis can't be used; see the class.
            Exception: the error that ended the flusher.
        """
        namespace = self._namespace.with_concurrency(concurrency)
        check_executor(self._config)
        await self._register_flusher()
        if self.is_running:
            raise FlusherFailed("a flusher of this aggregator runs already; stop it first")
        flusher = self._start_flusher(namespace)
        await flusher.wait_until_signalled()

    async def wait_until_idle(self, timeout: float) -> bool:
        """Waits until no task waits or is in flight.

        Args:
            timeout: longest wait in seconds.

        Returns:
            True, or False if tasks were left at the end of the timeout.
        """
        deadline = time.monotonic() + timeout
        while not is_idle(await self.stats()):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(IDLE_POLL_INTERVAL)
        return True

    async def flush(self, group_key: GroupKey) -> int:
        """Makes the waiting tasks of a group due now.

        Args:
            group_key: key of the group.

        Returns:
            The number of tasks that were not due before.

        Raises:
            InvalidGroupKey: the group key is wrong.
        """
        return await self._run(steering.flush(self._keyspace, group_key_bytes(group_key)))

    async def postpone(self, group_key: GroupKey, until: datetime) -> int:
        """Has no batch cut from the waiting tasks of a group before a moment, full or not.

        It holds until a batch is cut from the group or it is empty. A flush takes precedence, and a
        moment in the past takes it back.

        Args:
            group_key: key of the group.
            until: a `datetime` with a time zone.

        Returns:
            The number of tasks that wait in the group; 0 if there is no such group.

        Raises:
            InvalidGroupKey: the group key is wrong.
            InvalidTask: the moment has no time zone, or is not in the years 1970 to 2199.
        """
        check_moment(until, "until")
        group = group_key_bytes(group_key)
        return await self._run(steering.postpone(self._keyspace, group, moment_ms(until)))

    async def flush_all(self) -> int:
        """Makes all waiting tasks due now.

        Returns:
            The number of tasks that were not due before.
        """
        return await self._run_anew(lambda: steering.flush_all(self._keyspace))

    async def pause(self, group_key: GroupKey | None = None, *, by: str | None = None) -> None:
        """Stops flushing on all nodes until `resume` is called, of all groups or of one.

        Tasks can still be added, and running merges end. Batches that wait for another attempt
        wait on. A flush of a paused group takes effect when the group is resumed.

        Args:
            group_key: key of the group, which need not exist yet; None for all groups. A pause of
                all groups and that of a group are independent of each other.
            by: who pauses, for those who ask why nothing is flushed; by default the user and the
                host of this process.

        Raises:
            InvalidConfig: `by` is no text of up to 256 bytes.
            InvalidGroupKey: the group key is wrong.
        """
        group = None if group_key is None else group_key_bytes(group_key)
        name = paused_by(by)
        await self._register()  # tasks that are added later wait too
        if group is None:
            await self._run(steering.pause(self._keyspace, paused=True, by=name))
        else:
            await self._run(steering.pause_group(self._keyspace, group, paused=True, by=name))

    async def resume(self, group_key: GroupKey | None = None) -> None:
        """Resumes flushing on all nodes after `pause`.

        Batches of a group that wait for another attempt follow within two seconds.

        Args:
            group_key: key of a group that was paused; None after a pause of all groups.

        Raises:
            InvalidGroupKey: the group key is wrong.
        """
        if group_key is None:
            await self._run(steering.pause(self._keyspace, paused=False))
        else:
            group = group_key_bytes(group_key)
            await self._run(steering.pause_group(self._keyspace, group, paused=False))

    # --- policies --------------------------------------------------------------------------

    async def set_policy(
        self, pattern: str, policy: Policy, *, apply_to_open: bool = False
    ) -> AppliedPolicy:
        """Sets limits for the groups whose keys match a pattern, in place of the configured ones.

        They are stored in Redis and count for all producers of the namespace: for each add that
        begins a second later. What a task sets itself comes first, then the policies that match its
        group, the one with the longest pattern first, then the settings. Each limit is decided on
        its own. Tasks that wait keep the limits with which they were added, unless `apply_to_open`.

        Args:
            pattern: 1 to 512 bytes; ``*`` stands for any characters, all others for themselves. The
                policy of the same pattern is replaced.
            policy: the limits.
            apply_to_open: whether the tasks that wait in matching groups also get the limits that
                policies set, but for those that a task has set itself. Takes a second, until all
                producers use the policy, and then about a minute for a million groups.

        Returns:
            How many open groups were changed: none without `apply_to_open`.

        Raises:
            InvalidConfig: the pattern has another form, `policy` is no `Policy` or allows batches
                that exceed a rate limit, or there are 1,000 policies already. Nothing was written.
        """
        pattern = policing.check_policy(pattern, policy, self._config)
        await self._register()
        await self._run(policing.set_policy(self._keyspace, pattern, policy))
        if not apply_to_open:
            return AppliedPolicy(0, 0)
        await asyncio.sleep(STALE)
        return await self._run(policing.apply_policy(self._keyspace, pattern))

    async def policies(self) -> dict[str, Policy]:
        """Reads the policies.

        Returns:
            The policies by pattern; the one that comes first for a group that both match is first.
        """
        return await self._run(policing.policies(self._keyspace))

    async def remove_policy(self, pattern: str) -> bool:
        """Removes the policy of a pattern, for each add that begins a second later.

        Args:
            pattern: the pattern with which it was set.

        Returns:
            True, or False if there was none.

        Raises:
            InvalidConfig: the pattern has another form than `set_policy` takes.
        """
        return await self._run(policing.remove_policy(self._keyspace, check_pattern(pattern)))

    # --- cancelling ------------------------------------------------------------------------

    async def cancel_task(self, group_key: GroupKey, task_id: str) -> bool:
        """Removes a waiting task from its group.

        Args:
            group_key: key of the group.
            task_id: id of the task.

        Returns:
            True, or False if the task does not wait there, for instance since a batch holds it.

        Raises:
            InvalidGroupKey: the group key is wrong.
            InvalidTask: the task id is wrong.
        """
        group, raw_id = group_key_bytes(group_key), task_id_bytes(task_id)
        return await self._run(steering.cancel_task(self._keyspace, group, raw_id))

    async def cancel_group(self, group_key: GroupKey) -> int:
        """Removes all waiting tasks from a group; tasks in batches stay.

        Args:
            group_key: key of the group.

        Returns:
            The number of tasks removed.

        Raises:
            InvalidGroupKey: the group key is wrong.
        """
        return await self._run(steering.cancel_group(self._keyspace, group_key_bytes(group_key)))

    # --- inspecting ------------------------------------------------------------------------

    async def get_groups(
        self, *, tasks: bool = False, limit: int | None = None, due: bool = False
    ) -> dict[str, GroupState]:
        """Reads the groups with a task that waits or is in flight.

        As the other listings, it leaves out what redisagg did not write, and logs a warning.

        Args:
            tasks: whether to read the waiting tasks too.
            limit: largest number of groups, those that are due next; None for all groups. With a
                limit the cost does not grow with the number of groups.
            due: whether to read only groups that are due.

        Returns:
            The groups by the text form of their keys; with `limit` or `due` in the order in which
            they are due.

        Raises:
            InvalidConfig: `limit` is no number from 1.
        """
        return await self._run(inspecting.groups(self._keyspace, tasks=tasks, limit=limit, due=due))

    async def read_groups(
        self, place: GroupPlace | None = None, *, tasks: bool = False, due: bool = False
    ) -> GroupPage:
        """Reads a page of the groups that `get_groups` reads, in any order.

        All pages together take constant memory, however many groups there are. A group may be in
        several pages while groups come and go; one that is there all the time is in one at least.

        Args:
            place: the `next` of the page before; None for the first page.
            tasks: whether to read the waiting tasks too.
            due: whether to read only groups that are due.

        Returns:
            The groups, and the place of the next page.
        """
        operation = inspecting.group_page(
            self._keyspace, place or GroupPlace(), tasks=tasks, due=due
        )
        return await self._run(operation)

    async def find_groups(
        self,
        *,
        prefix: str = "",
        order: GroupOrder = "due",
        limit: int = GROUPS_PER_PAGE,
        cursor: str | None = None,
        tasks: bool = False,
    ) -> GroupList:
        """Searches groups, and reads a page of them in an order.

        Each page takes bounded time and memory, in Redis too, however many groups there are. It
        looks at a bounded number of groups: a page may have few groups, or none, and a cursor to go
        on with. Groups that come, go or change between two pages may be in both or in none.

        Args:
            prefix: start of the text forms of the group keys; empty for all groups. A group with
                this key itself comes first.
            order: ``"due"``: in the order in which they are due, those first that are due already.
                Redis' index may be behind by one grace period for groups that tasks were added to.
                Groups that are held back or paused, or whose tasks are all in batches, come last.
                ``"size"``: most waiting tasks first. ``"age"``: oldest waiting task first. There
                is no index for these two: of more than 10,000 groups, each page is sorted alone.
                ``"any"``: in no order.
            limit: number of groups at which a page ends, up to 1,000; without order it may have
                more.
            cursor: the `cursor` of the page before; None for the first page.
            tasks: whether to read the waiting tasks too.

        Returns:
            The groups, and the cursor of the next page.

        Raises:
            InvalidConfig: an argument is out of range or of the wrong type, or the cursor is none
                of a page in this order.
        """
        operation = listing.find_groups(
            self._keyspace, prefix=prefix, order=order, limit=limit, cursor=cursor, tasks=tasks
        )
        return await self._run(operation)

    async def get_entries(self, *, tasks: bool = False) -> dict[str, GroupState]:
        """Reads all groups: an alias of `get_groups`, under its earlier name.

        Args:
            tasks: whether to read the waiting tasks too.

        Returns:
            The groups by the text form of their keys.
        """
        return await self.get_groups(tasks=tasks)

    async def get_group(
        self, group_key: GroupKey, *, offset: int = 0, limit: int = TASKS_PER_PAGE
    ) -> GroupState | None:
        """Reads one group with a page of its waiting tasks.

        Args:
            group_key: key of the group.
            offset: number of waiting tasks to skip.
            limit: largest number of tasks; the `size` of the group is the number of all.

        Returns:
            The group, or None if it has no task that waits or is in flight.

        Raises:
            InvalidGroupKey: the group key is wrong.
            InvalidConfig: the offset or the limit is no number from 0.
        """
        group = group_key_bytes(group_key)
        operation = inspecting.group(self._keyspace, group, offset=offset, limit=limit)
        return await self._run(operation)

    async def locate(self, group_key: GroupKey, task_id: str) -> Location:
        """Says where a task is, or what became of it.

        Args:
            group_key: key of its group.
            task_id: id of the task.

        Returns:
            That it waits, is in a batch, or is in a dead letter. Of a task that was submitted also
            what became of it, for `result_ttl` seconds.

        Raises:
            InvalidGroupKey: the group key is wrong.
            InvalidTask: the task id is wrong.
        """
        group, raw_id = group_key_bytes(group_key), task_id_bytes(task_id)
        return await self._run(locating.locate(self._keyspace, group, raw_id))

    async def explain(self, group_key: GroupKey) -> Explanation:
        """Says why the tasks of a group are not flushed yet, and what to do.

        Reads a bounded number of values, whatever waits; an observer's rights are enough. On a
        cluster a master that does not answer is part of the answer.

        Args:
            group_key: key of the group.

        Returns:
            One cause as a sentence, and what else is wrong; also whether the group is late.

        Raises:
            InvalidGroupKey: the group key is wrong.
        """
        group = group_key_bytes(group_key)
        return await self._observe(explaining.explain, group)

    async def get_troubles(self) -> list[Trouble]:
        """Says what keeps tasks of the namespace from being flushed, the worst first.

        Returns:
            What concerns all groups or those of some partitions; empty if all is well.
        """
        found, _ = await self._observe(observing.health)
        return observing.troubles(found)

    async def overview(self) -> Overview:
        """Reads the namespace in one look: counts, flushers, and what is wrong.

        Returns:
            The counts, the oldest that is overdue, the flushers and the troubles. The cost does
            not grow with the number of groups.
        """
        return await self._observe(observing.overview)

    async def get_flushers(self) -> list[FlusherState]:
        """Reads the live flushers.

        Returns:
            What each one leads, and which sinks it found down.
        """
        found, _ = await self._observe(observing.health)
        return observing.flusher_states(found)

    async def get_batches(self, *, tasks: bool = False) -> list[BatchState]:
        """Reads all batches that are being merged or wait for a retry.

        Args:
            tasks: whether to read their tasks too.

        Returns:
            The batches, oldest first.
        """
        return await self._run(inspecting.batches(self._keyspace, tasks=tasks))

    async def read_batches(
        self,
        place: GroupPlace | None = None,
        *,
        tasks: bool = False,
        state: Literal["claimed", "retry"] | None = None,
        group_key: GroupKey | None = None,
        error: str | None = None,
    ) -> BatchPage:
        """Reads a page of the batches that `get_batches` reads, in any order.

        A batch may be in several pages while batches come and go; a page may be empty although
        others follow.

        Args:
            place: the `next` of the page before; None for the first page.
            tasks: whether to read their tasks too.
            state: only those in this state, ``"claimed"`` or ``"retry"``.
            group_key: only those of this group.
            error: only those with this text in the error of their last attempt.

        Returns:
            The batches, and the place of the next page.

        Raises:
            InvalidConfig: the state, the text or the place is wrong.
            InvalidGroupKey: the group key is wrong.
        """
        group = None if group_key is None else group_key_bytes(group_key)
        return await self._run(
            inspecting.batch_page(
                self._keyspace, place, tasks=tasks, state=state, group=group, error=error
            )
        )

    async def get_batch(self, batch_id: str) -> BatchTimeline | None:
        """Reads what happened to one batch, step by step.

        Args:
            batch_id: id of the batch.

        Returns:
            The batch, in flight or a dead letter; None if it is neither: it is done or dropped, or
            there was none with this id.

        Raises:
            UnknownBatch: the batch id is no `str`.
        """
        return await self._run(inspecting.batch(self._keyspace, batch_id))

    async def stats(self) -> Stats:
        """Reads the counts of tasks, groups and batches; takes constant time for each partition.

        Returns:
            The counts of all partitions together and of each one.
        """
        return await self._run_anew(lambda: inspecting.stats(self._keyspace))

    async def health(self, timeout: Duration = 1.0) -> Health:
        """Says whether the namespace works; for a health endpoint or a probe.

        Args:
            timeout: seconds (or a `timedelta`) within which it returns, whatever Redis does.

        Returns:
            Whether Redis is reachable, all partitions are led, and for how long work is overdue. An
            error of Redis is a part of it.

        Raises:
            InvalidConfig: the timeout is out of range.
        """
        return await ask_on_loop(self._namespace, self._here().transport.client, timeout)

    async def history(self, span: HistorySpan = "hour") -> History:
        """Reads what happened in the namespace: tasks in and out, batches, failures, delays.

        Flushers record it in Redis, so it survives their restarts. See the setting `history`.

        Args:
            span: ``"hour"`` for the last hour in steps of 20 seconds, ``"month"`` for the last 30
                days in steps of an hour.

        Returns:
            The steps, oldest first; none if no flusher has recorded any.

        Raises:
            InvalidConfig: there is no such span.
        """
        return await self._run(remembering.history(self._keyspace, span))

    # --- dead letters ----------------------------------------------------------------------

    async def dead_letters(
        self,
        *,
        tasks: bool = False,
        group_key: GroupKey | None = None,
        type: str | None = None,
        error: str | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[DeadLetter]:
        """Reads dead letters.

        Args:
            tasks: whether to read their tasks too.
            group_key: key of a group; None (default) for all groups.
            type: type that one of their tasks has; None for any.
            error: part of their error, in letters of any case; None for any.
            after: id of the last dead letter of the previous page; None for the first page.
            limit: number of dead letters to return at most; None for all.

        Returns:
            The dead letters, oldest batch first.

        Raises:
            InvalidConfig: the limit is no number from 1, or another argument is no text.
            InvalidGroupKey: the group key is invalid.
        """
        group = None if group_key is None else group_key_bytes(group_key)
        wanted = inspecting.DeadFilter(group, type, error, after)
        return await self._run(
            inspecting.dead_letters(self._keyspace, tasks=tasks, wanted=wanted, limit=limit)
        )

    async def dead_reasons(self) -> list[DeadReason]:
        """Counts the dead letters by their error, with ``#`` in place of numbers.

        Returns:
            The errors; the one with the most tasks comes first.
        """
        return await self._run(inspecting.dead_reasons(self._keyspace))

    async def get_dead_letter(self, batch_id: str) -> DeadLetter | None:
        """Reads one dead letter with its tasks.

        Args:
            batch_id: id of the batch.

        Returns:
            The dead letter, or None if no dead letter has this id.

        Raises:
            UnknownBatch: the batch id is no `str`.
        """
        return await self._run(inspecting.dead_letter(self._keyspace, batch_id))

    async def requeue_dead_letter(
        self,
        batch_id: str,
        *,
        only: Iterable[str] | None = None,
        excluding: Iterable[str] | None = None,
    ) -> int:
        """Requeues a dead letter under the same batch id, to be merged and enqueued anew.

        With `only` or `excluding` some of its tasks are requeued, as a batch with an id of its own.
        The others stay a dead letter, with its id and its error.

        Args:
            batch_id: id of the batch.
            only: ids of the tasks that are requeued; None (default) for all.
            excluding: ids of the tasks that are not requeued; None (default) for none. Only one of
                the two can be given.

        Returns:
            The number of tasks that were requeued.

        Raises:
            HalfEnqueued: only some tasks are to be requeued of a dead letter of which a part has
                been enqueued.
            InvalidConfig: both `only` and `excluding` are given, or one is no list of texts.
            UnknownBatch: no dead letter has this id.
            UnknownTask: the dead letter has no task with one of these ids; nothing was requeued.
        """
        chosen = steering.chosen_tasks(only, excluding)
        return await self._run(steering.requeue_tasks(self._keyspace, batch_id, chosen))

    async def drop_dead_letter(self, batch_id: str) -> int:
        """Deletes a dead letter with its tasks.

        Args:
            batch_id: id of the batch.

        Returns:
            The number of its tasks.

        Raises:
            UnknownBatch: no dead letter has this id.
        """
        return await self._run(steering.drop_dead_letter(self._keyspace, batch_id))

    # --- reading the queue -----------------------------------------------------------------

    async def read_sink(self, cursor: Cursor | None = None, *, limit: int = 1000) -> SinkPage:
        """Reads enqueued batches from all keys of the queue; removes nothing.

        Args:
            cursor: cursor of the previous page; None for the oldest batches.
            limit: largest number of batches read from each key.

        Returns:
            A page of batches, the cursor of the next page, and the entries that can't be read.

        Raises:
            SinkError: the sink is not a stream or list in this Redis.
            InvalidConfig: `limit` is no number from 1.
        """
        keys = self.sink_keys()
        return await self._run(reading.read_sink(self._namespace, keys, cursor or {}, limit))

    # --- closing ---------------------------------------------------------------------------

    async def close(self) -> None:
        """Stops the flusher, and closes the client if the aggregator made it from a URL.

        Closes the connections of this event loop; those of other loops end with their loops.
        Returns within `shutdown_timeout` and 2 seconds, as `stop`.
        """
        until = end_by(self._namespace)
        try:
            await self.stop()
        finally:
            here = self._on_loops.pop(asyncio.get_running_loop(), None)
            if here is not None:
                await self._leave(here, until)

    async def _leave(self, here: _OnLoop, until: float) -> None:
        if here.answers is not None:
            await await_within(CLOSE_TIMEOUT, here.answers.close())
        if sequences := self._sequences.drain():
            forget = here.transport.once(forget_calls(self._keyspace, sequences))
            with suppress(RedisAggError):  # the keys that this deletes also expire
                await await_within(min(FORGET_TIMEOUT, until - time.monotonic()), forget)
        if here.own_client:  # a TLS connection waits for the end of the other side
            left = max(CLOSE_TIMEOUT, until - time.monotonic())
            await await_within(left, aclose(here.transport.client))

    async def __aenter__(self) -> AsyncAggregator:
        await self.start()
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.close()

    async def _start_here(self) -> None:
        await self.start()

    async def _close_here(self) -> None:
        await self.close()

    def _here(self) -> _OnLoop:
        """What the aggregator uses on the running event loop."""
        loop = asyncio.get_running_loop()
        here = self._on_loops.get(loop)
        return self._enter(loop) if here is None else here

    def _enter(self, loop: asyncio.AbstractEventLoop) -> _OnLoop:
        for each in list(self._on_loops):  # other threads may use it on loops of their own
            if each.is_closed():
                self._on_loops.pop(each, None)
        self._loop_of_client.append(loop)
        client: AsyncClient | None = self._client
        own = False
        if self._loop_of_client[0] is not loop:  # a connection works on one loop only
            del self._loop_of_client[1:]
            client = None
        if client is None:
            client, own = self._make_client()
        transport = AsyncTransport(client, seconds(self._config.add_timeout))
        here = self._on_loops[loop] = _OnLoop(
            transport, AsyncAdder(self._options, transport, self._sequences), own
        )
        return here

    def _make_client(self) -> tuple[AsyncClient, bool]:
        """Makes a client for the running event loop; says whether `close` closes it."""
        return self._namespace.producer_endpoint().asyncio(), True

    async def _register(self) -> None:
        here = self._here()
        if here.registering is None or here.registering.done:
            here.registering = Uncancelled(lambda: here.transport.run(self._namespace.register()))
        try:  # concurrent callers share the round trip, since any may be cancelled
            await here.registering.result()
        except RedisAggError as error:
            raise copy.copy(error) from error.__cause__  # each caller gets its own exception
        self._registered = True

    async def _register_flusher(self) -> None:
        """As `_register`; a refusal is noted in Redis, so that `explain` can name it."""
        try:
            await self._register()
        except NamespaceMismatch as error:
            with suppress(RedisAggError):
                await self._here().transport.once(self._namespace.note_refusal(error))
            raise

    async def _observe(self, operation: Callable[..., Operation[T]], *args: Any) -> T:
        """Runs an operation that looks at what may be broken, so it does not wait for long."""
        timeout = min(OBSERVE_TIMEOUT, seconds(self._config.add_timeout))
        transport = AsyncTransport(self._here().transport.client, timeout)
        make = partial(operation, self._keyspace, *args, clustered=transport.clustered)
        try:
            return await transport.run(make())
        except NamespaceMoved as moved:
            self._namespace.follow(moved)
            return await transport.run(make())

    async def _run_anew(self, make: Callable[[], Operation[T]]) -> T:
        """Runs an operation, once more if the namespace was moved."""
        try:
            return await self._run(make())
        except NamespaceMoved:
            return await self._run(make())

    async def _run(self, operation: Operation[T]) -> T:
        """Runs an operation; a namespace that does not exist is empty, and stays so."""
        transport = self._here().transport
        if not self._registered:
            self._registered = await transport.run(self._namespace.check())
        elif not transport.clustered:  # there the record may be on a dead master
            operation = self._namespace.checked(operation)
        try:
            return await transport.run(operation)
        except NamespaceMoved as moved:
            self._namespace.follow(moved)
            raise


@dataclass(slots=True)
class _OnLoop:
    """What an aggregator uses on one event loop."""

    transport: AsyncTransport
    adder: AsyncAdder
    own_client: bool
    """Whether the aggregator made the client."""
    registering: Uncancelled[None] | None = None
    reading: Uncancelled[None] | None = None
    """The call that reads Redis' clock."""
    answers: AsyncAnswers | None = None


async def _result(future: Future[None]) -> None:
    await asyncio.wrap_future(future)
