"""A model of leases, claims and commits that is small enough to search all of its states.

A state holds the contents of Redis for one partition and the memory of producers and flushers. A
step is one script of `lua/`, which is atomic, or an event between scripts: a crash, the end of a
lease. This module has the states and the scripts, `steps.py` the steps that a state allows, and
`search.py` takes every step from every state.

The model has no clock: a group may become due, a lease or a claim may run out, and a retry may
become due at any moment. So the rules that make a group due or hold it back (`due_at`,
`not_before`, `flush`, a min interval) need no steps: with them, a group is cut at some of these
moments. A pause of a flusher is a run in which it takes no step while others do.

The reply to any script may be lost, and its sender repeats the script. A copy of a producer's call
may also arrive later. A late copy of a flusher's request needs no step: it has the same effect as a
new request with the same token whose reply is lost.

A flusher in the model may do more than a real one: it commits in any order, and puts into retry or
buries any batch, after any number of attempts. So the order is kept by the scripts alone. A merge
has no step: other parts do not see when it happens, and it may fail at any time.

`extend`, `set_aside`, `join`, `leave`, the wake-ups and the operations of operators are left out,
since they change nothing that is checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Tasks = tuple[str, ...]
Reply = Any

CLAIMED, FREE, RETRY = "claimed", "free", "retry"
"""The place of a batch: in `claims`, in `claims` with a score of 0 or 1, or in `retry`. Batches in
`suspects` hold their group as those in `retry` do."""

NOBODY = -1
NEW = -1
"""Stands for the start of a batch that is to be cut."""


class Batch(NamedTuple):
    """A record in `batches`. The absolute number of its first task is its id."""

    start: int
    task_count: int
    place: str
    enqueued: int = 0
    """Number of slices of its merge result that commits have enqueued before the last one."""


class Group(NamedTuple):
    """A group in Redis."""

    tasks: Tasks = ()
    """The list `tasks:G`, oldest first: tasks in batches, then waiting tasks."""
    base: int = 0
    """The absolute number of the task at the head of the list."""
    batches: tuple[Batch, ...] = ()
    held: int = 0
    """Number of its batches in retry."""
    left: Tasks = ()
    """The tasks of the enqueued and buried batches, in order."""
    arrived: Tasks = ()
    """All tasks that were ever added, in order; for the checks only."""
    slices: tuple[tuple[int, int], ...] = ()
    """The slices that were enqueued before the last one of their batch: the start of the batch and
    the number of the slice. For the checks only."""


class Redis(NamedTuple):
    """The contents of Redis."""

    groups: tuple[Group, ...]
    calls: tuple[int, ...]
    """For each producer the number of its remembered call."""
    token: int = 0
    owner: int = NOBODY
    running: bool = False
    """Whether a lease runs."""


class ClaimedBatch(NamedTuple):
    """A batch in the memory of a flusher, with a copy of its tasks."""

    group: int
    start: int
    tasks: Tasks
    enqueued: int = 0
    """Number of slices of its merge result that are enqueued, as far as the flusher knows."""


class Flusher(NamedTuple):
    """The memory of a flusher."""

    token: int = 0
    in_flight: tuple[ClaimedBatch, ...] = ()


class Request(NamedTuple):
    """A script that a flusher sends."""

    script: str
    flusher: int
    token: int = 0
    group: int = 0
    start: int = NEW
    tasks: Tasks = ()
    enqueued: int = 0
    known: tuple[ClaimedBatch, ...] = ()


class State(NamedTuple):
    """A state of the whole system."""

    redis: Redis
    acknowledged: tuple[int, ...]
    """For each producer the number of its calls that were answered."""
    flushers: tuple[Flusher, ...]


class Scenario(NamedTuple):
    """The calls and the flushers of a search.

    Args:
        calls: For each producer its calls: the group and the task of each.
        size: The maximum number of tasks in a batch.
        flushers: The number of flushers.
        without: Checks that are removed from the scripts.
        slices: In how many slices the merge result of each batch is enqueued. The last one removes
            the batch.
    """

    calls: tuple[tuple[tuple[int, str], ...], ...]
    size: int = 2
    flushers: int = 2
    without: frozenset[str] = frozenset()
    slices: int = 1

    @property
    def start(self) -> State:
        """The state before any call."""
        groups = 1 + max(group for calls in self.calls for group, _ in calls)
        none = (0,) * len(self.calls)
        return State(Redis((Group(),) * groups, none), none, (Flusher(),) * self.flushers)

    def checks(self, name: str) -> bool:
        """Whether the scripts have a check."""
        return name not in self.without


# --- the scripts -----------------------------------------------------------------------------


def add(scenario: Scenario, redis: Redis, producer: int, number: int) -> Redis:
    """`add.lua`, with one task per call.

    The remembered call and earlier ones are not carried out again. A task that already waits is not
    added, but its call is remembered.
    """
    if number <= redis.calls[producer] and scenario.checks("calls"):
        return redis
    index, task = scenario.calls[producer][number - 1]
    group = redis.groups[index]
    calls = replaced(redis.calls, producer, number)
    if task in group.tasks[claimed(group) :]:
        return redis._replace(calls=calls)
    group = group._replace(tasks=(*group.tasks, task), arrived=(*group.arrived, task))
    return _with(redis, index, group)._replace(calls=calls)


def acquire(scenario: Scenario, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`acquire.lua`: takes a lease that is free, or the flusher's own, with a larger token.

    The batches that the previous leader had claimed can be claimed again.
    """
    if redis.running and redis.owner != request.flusher:
        return redis, 0
    if scenario.checks("void"):
        redis = _free_claims(redis, ())
    token = redis.token + 1 if scenario.checks("growth") else 1
    return redis._replace(token=token, owner=request.flusher, running=True), token


def fence(scenario: Scenario, redis: Redis, request: Request) -> Reply:
    """`includes/fence.lua`, with which all scripts of a leader but `release` begin."""
    broken = scenario.without if request.script == "commit" else ()  # other scripts keep the check
    if request.token != redis.token and "token" not in broken:
        return "STALE"
    if not redis.running and "lease" not in broken:
        return "STALE"
    return None


def renew(scenario: Scenario, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`renew.lua`: without a clock, it only says whether the lease is over."""
    return redis, 1


def release(scenario: Scenario, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`release.lua`: gives the lease back if the token is the newest."""
    if redis.token != request.token:
        return redis, 0
    return _free_claims(redis, ())._replace(running=False, owner=NOBODY), 1


def recall(scenario: Scenario, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`recall.lua`: frees all claims except those that the leader knows."""
    return _free_claims(redis, request.known), 1


def claim(scenario: Scenario, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`poll.lua` and `claim.lua`: cuts a batch, or takes over one that came back.

    A batch comes back when its claim is free or has run out, or its retry is due. A batch in retry
    holds its group: none is cut from it.
    """
    group = redis.groups[request.group]
    if request.start == NEW:
        start = group.base + claimed(group)
        count = group.base + len(group.tasks) - start
        if not count or group.held:
            return redis, None
        if scenario.checks("size"):
            count = min(count, scenario.size)
    else:
        batch = batch_at(group, request.start)
        if batch is None:
            return redis, None
        start, count, place, _ = batch
        if place == RETRY:
            group = group._replace(held=group.held - 1)
    tasks = group.tasks[start - group.base : start - group.base + count]
    done = 0 if request.start == NEW else batch_at(group, start).enqueued  # type: ignore[union-attr]
    group = _put(group, Batch(start, count, CLAIMED, done))
    known = done if scenario.checks("goes on") else 0
    return _with(redis, request.group, group), ClaimedBatch(request.group, start, tasks, known)


def commit(scenario: Scenario, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """The commit scripts: enqueue the merged task and remove the batch."""
    group = redis.groups[request.group]
    status = _may_leave(scenario, group, request)
    if status != "OK":
        return redis, status
    batch = batch_at(group, request.start)
    if batch is not None and request.enqueued != batch.enqueued and scenario.checks("slice"):
        # The flusher learns how many have been enqueued.
        return redis, batch.enqueued
    if request.enqueued + 1 < scenario.slices:
        group = group._replace(slices=(*group.slices, (request.start, request.enqueued)))
        if batch is not None:
            group = _put(group, batch._replace(enqueued=request.enqueued + 1))
        return _with(redis, request.group, group), request.enqueued + 1
    return _with(redis, request.group, _close(group, request, request.tasks)), status


def bury(scenario: Scenario, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`bury.lua`: moves the batch with its tasks to the dead letters."""
    group = redis.groups[request.group]
    status = _may_leave(scenario, group, request)
    if status != "OK":
        return redis, status
    tasks = group.tasks[: len(request.tasks)]
    return _with(redis, request.group, _close(group, request, tasks)), status


def retry(scenario: Scenario, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`retry.lua`: puts the batch into retry."""
    group = redis.groups[request.group]
    batch = batch_at(group, request.start)
    if batch is None or batch.place == RETRY:
        return redis, 0
    group = _put(group, batch._replace(place=RETRY))._replace(held=group.held + 1)
    return _with(redis, request.group, group), 1


def _may_leave(scenario: Scenario, group: Group, request: Request) -> str:
    """The first checks of `includes/commit.lua` and `bury.lua`."""
    batch = batch_at(group, request.start)
    if (batch is None or batch.place == RETRY) and scenario.checks("gone"):
        return "GONE"
    return "ORDER" if request.start != group.base and scenario.checks("order") else "OK"


def _close(group: Group, request: Request, leaving: Tasks) -> Group:
    """`trim_batch` in `includes/commit.lua` and `close_batch` in `includes/batch.lua`."""
    count = len(request.tasks)
    return group._replace(
        tasks=group.tasks[count:],
        base=group.base + count,
        batches=tuple(batch for batch in group.batches if batch.start != request.start),
        left=group.left + leaving,
    )


def _free_claims(redis: Redis, known: tuple[ClaimedBatch, ...]) -> Redis:
    """Ends all claims except the known ones."""
    for index, group in enumerate(redis.groups):
        for batch in group.batches:
            is_known = any((each.group, each.start) == (index, batch.start) for each in known)
            if batch.place == CLAIMED and not is_known:
                group = _put(group, batch._replace(place=FREE))
                redis = _with(redis, index, group)
    return redis


def batch_at(group: Group, start: int) -> Batch | None:
    """The batch with this start, or None."""
    return next((batch for batch in group.batches if batch.start == start), None)


def claimed(group: Group) -> int:
    """Number of tasks in batches."""
    return sum(batch.task_count for batch in group.batches)


def _put(group: Group, new: Batch) -> Group:
    others = [batch for batch in group.batches if batch.start != new.start]
    return group._replace(batches=tuple(sorted((*others, new))))


def _with(redis: Redis, index: int, group: Group) -> Redis:
    return redis._replace(groups=replaced(redis.groups, index, group))


def replaced(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    """A copy of `values` with one of them replaced."""
    return (*values[:index], value, *values[index + 1 :])


_SCRIPTS: dict[str, Callable[[Scenario, Redis, Request], tuple[Redis, Reply]]] = {
    each.__name__: each for each in (acquire, renew, release, recall, claim, commit, bury, retry)
}


def carry_out(scenario: Scenario, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """Runs a flusher's script."""
    if request.script not in ("acquire", "release") and fence(scenario, redis, request):
        return redis, "STALE"
    return _SCRIPTS[request.script](scenario, redis, request)
