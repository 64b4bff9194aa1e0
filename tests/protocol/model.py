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
has a step only where its result is stored apart: results of the same batch differ. Elsewhere other
parts do not see when it happens, and it may fail at any time.

`extend`, `set_aside`, `join`, `leave`, the wake-ups and the operations of operators are left out,
since they change nothing that is checked here.

Outcomes of submitted tasks are left out too. They are written by the script that removes the batch,
or by one that asks whether the merge result is stored as a whole; that a batch has one such result
only is checked here. Permits are left out: without one a flusher does nothing, as it may here at
any moment.
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
    """Number of slices of its merge result that commits have enqueued."""
    parted: int = 0
    """Number of its tasks that failed alone and have left."""
    result: int = 0
    """The label of the merge result that is stored apart as a whole; 0 for none."""
    parts: tuple[tuple[int, int], ...] = ()
    """The stored parts of merge results: the label and the place of each."""


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
    slices: tuple[tuple[int, int, int], ...] = ()
    """The slices that were enqueued before the last one of their batch: the start of the batch, the
    number of the slice and the label of its merge result. For the checks only."""
    letters: tuple[tuple[int, int, int], ...] = ()
    """The dead letters of tasks that failed alone: the start of the batch, the place of the task
    among them and the label of the merge result that says so. For the checks only."""
    paused: bool = False


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
    parted: int = 0
    """Number of its tasks that failed alone and have left, as far as the flusher knows."""
    label: int = 0
    """That of the merge result which the flusher has; 0 for none, or if none is stored apart."""


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
    parted: int = 0
    label: int = 0
    place: int = 0
    """The place of a part of a merge result that is to be stored."""
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
        failed: How many tasks of each batch fail alone. Each becomes a dead letter in a call of its
            own, the first one in that of the last slice; the last of these calls removes the batch.
        parts: In how many parts a merge result is stored apart, 0 if none is.
        splits: Whether flushers split batches in halves.
        pauses: Whether operators pause groups, and resume them.
    """

    calls: tuple[tuple[tuple[int, str], ...], ...]
    size: int = 2
    flushers: int = 2
    without: frozenset[str] = frozenset()
    slices: int = 1
    failed: int = 0
    parts: int = 0
    splits: bool = False
    pauses: bool = False

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
    holds its group: none is cut from it. Nor is one cut from a paused group, whose batches in retry
    wait.
    """
    group = redis.groups[request.group]
    if request.start == NEW:
        start = group.base + claimed(group)
        count = group.base + len(group.tasks) - start
        if not count or group.held or (group.paused and scenario.checks("pause")):
            return redis, None
        if scenario.checks("size"):
            count = min(count, scenario.size)
    else:
        batch = batch_at(group, request.start)
        if batch is None:
            return redis, None
        start, count, place = batch[:3]
        if place == RETRY:
            if group.paused and scenario.checks("pause of retries"):
                return redis, None
            group = group._replace(held=group.held - 1)
    tasks = group.tasks[start - group.base : start - group.base + count]
    batch = batch_at(group, start) or Batch(start, count, CLAIMED)
    group = _put(group, batch._replace(place=CLAIMED))
    known = batch.enqueued if scenario.checks("goes on") else 0
    claimed_batch = ClaimedBatch(request.group, start, tasks, known, label=batch.result)
    return _with(redis, request.group, group), claimed_batch


def commit(scenario: Scenario, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """The commit scripts: enqueue the merged task and remove the batch."""
    group = redis.groups[request.group]
    status = _may_leave(scenario, group, request)
    if status != "OK":
        return redis, status
    batch = _of_request(group, request)
    if batch is not None and request.enqueued != batch.enqueued and scenario.checks("slice"):
        # The flusher learns how many have been enqueued.
        return redis, batch.enqueued
    is_last = request.enqueued + 1 >= scenario.slices
    parts_left = max(0, scenario.failed - request.parted - 1)
    goes_on = not is_last or parts_left > 0
    if goes_on and scenario.parts and not (batch and batch.result) and scenario.checks("stored"):
        return redis, "ORDER"
    if is_last and batch and request.parted != batch.parted and scenario.checks("parted"):
        return redis, Parted(batch.parted)
    if request.enqueued < scenario.slices and (goes_on or scenario.parts):
        enqueued = (request.start, request.enqueued, request.label)
        group = group._replace(slices=(*group.slices, enqueued))
    reply: Reply = request.enqueued + 1
    if is_last and scenario.failed:
        letter = (request.start, request.parted, request.label)
        group = group._replace(letters=(*group.letters, letter))
        reply = Parted(request.parted + 1)
    if not goes_on:
        return _with(redis, request.group, _close(group, request, request.tasks)), status
    if batch is not None:
        enqueued_now = min(request.enqueued + 1, scenario.slices)
        parted_now = request.parted + 1 if is_last else batch.parted
        group = _put(group, batch._replace(enqueued=enqueued_now, parted=parted_now))
    return _with(redis, request.group, group), reply


class Parted(NamedTuple):
    """The reply of a commit that has made dead letters of some tasks."""

    letters: int


def store_result(scenario: Scenario, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`store_result.lua`: stores a part of a merge result; with the last part it is whole."""
    group = redis.groups[request.group]
    batch = _of_request(group, request)
    if batch is None or batch.place != CLAIMED:
        return redis, 0
    part = (request.label, request.place)
    kept = batch.parts
    if not scenario.checks("labels"):  # the parts of all results have the same names
        kept = tuple(each for each in kept if each[1] != request.place)
    batch = batch._replace(parts=tuple(sorted({*kept, part})))
    if request.place + 1 < scenario.parts:
        return _with(redis, request.group, _put(group, batch)), 1
    places = {
        place
        for label, place in batch.parts
        if label == request.label or not scenario.checks("labels")
    }
    if len(places) < scenario.parts and scenario.checks("parts"):
        return _with(redis, request.group, _put(group, batch)), 0
    if scenario.checks("labels"):
        own = tuple(each for each in batch.parts if each[0] == request.label)
        batch = batch._replace(parts=own)
    group = _put(group, batch._replace(result=request.label))
    return _with(redis, request.group, group), 1


def split(scenario: Scenario, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`split.lua`: puts the halves of a batch into retry in its place."""
    group = redis.groups[request.group]
    batch = _of_request(group, request)
    if batch is None or batch.task_count < 2:
        return redis, 0
    if batch.place != CLAIMED and scenario.checks("claimed"):
        return redis, 0
    if batch.result and scenario.checks("unsplit result"):
        return redis, 0
    count = (batch.task_count + 1) // 2
    first = batch._replace(task_count=count, place=RETRY, result=0, parts=())
    second = first._replace(start=batch.start + count, task_count=batch.task_count - count)
    group = _put(_put(group, first), second)._replace(held=group.held + 2)
    return _with(redis, request.group, group), 1


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
    batch = _of_request(group, request)
    if batch is None or batch.place == RETRY:
        return redis, 0
    group = _put(group, batch._replace(place=RETRY))._replace(held=group.held + 1)
    return _with(redis, request.group, group), 1


def _may_leave(scenario: Scenario, group: Group, request: Request) -> str:
    """The first checks of `includes/commit.lua` and `bury.lua`."""
    batch = _of_request(group, request)
    if (batch is None or batch.place == RETRY) and scenario.checks("gone"):
        return "GONE"
    return "ORDER" if request.start != group.base and scenario.checks("order") else "OK"


def _close(group: Group, request: Request, leaving: Tasks) -> Group:
    """`trim_batch` in `includes/commit.lua` and `leave_group` in `includes/batch.lua`."""
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


def _of_request(group: Group, request: Request) -> Batch | None:
    """The batch of a request, or None. The halves of a batch have ids of their own."""
    batch = batch_at(group, request.start)
    return batch if batch and batch.task_count == len(request.tasks) else None


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
    each.__name__: each
    for each in (
        *(acquire, renew, release, recall, claim, commit, bury, retry),
        *(store_result, split),
    )
}


def carry_out(scenario: Scenario, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """Runs a flusher's script."""
    if request.script not in ("acquire", "release") and fence(scenario, redis, request):
        return redis, "STALE"
    return _SCRIPTS[request.script](scenario, redis, request)
