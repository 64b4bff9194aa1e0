"""The protocol of leases, claims and commits, small enough to look at all that can happen.

A state holds what Redis holds for one partition and what producers and flushers remember. A step
is one script of `lua/`, carried out as a whole, or something that happens between scripts: a crash,
the end of a lease. This file has the states and the scripts, `steps.py` all steps that a state
allows, and `search.py` takes all of them from everywhere.

Time is not counted: whatever has to wait (a group until it is due, a lease or a claim until it runs
out, a batch until its retry) may come at any moment. So every pause of a flusher is in here, as a
run in which it takes no step while others do, and goes on later with what it held.

The reply to any script may get lost, and its sender repeats it. A copy of a producer's call may
also arrive later. Such a copy of what a flusher sent has no step of its own: it holds nothing but a
token and what it is about, and so is as good as a request sent just then whose reply is lost.

A flusher may do more here than the real one does: it commits in any order, and gives back or buries
what it likes, however many attempts there were. The scripts alone have to keep order. A merge has
no step: nobody else sees when between claim and commit it happens, and it may fail at any time.

Left out, since they change nothing that is checked here: `extend`, `set_aside`, `join` and `leave`,
the wake-ups, and all that an operator asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Tasks = tuple[str, ...]
Reply = Any

CLAIMED, FREE, RETRY = "claimed", "free", "retry"
"""Where a batch is: in `claims`, there with a score of 0, or in `retry`."""

NOBODY = -1
NEW = -1
"""In place of a batch: one that is to be cut."""


class Batch(NamedTuple):
    """A record in `batches`. The absolute number of its first task stands for its id."""

    start: int
    size: int
    place: str


class Group(NamedTuple):
    """What Redis holds of a group."""

    tasks: Tasks = ()
    """The list `tasks:G`, oldest first: those in batches, then those that wait."""
    base: int = 0
    """The absolute number of the task at the head of the list."""
    batches: tuple[Batch, ...] = ()
    held: int = 0
    """How many of its batches wait for a retry."""
    left: Tasks = ()
    """The tasks in the batches that were enqueued or buried, in order."""
    arrived: Tasks = ()
    """All that was ever added, in order; for the checks only."""


class Redis(NamedTuple):
    """What Redis holds."""

    groups: tuple[Group, ...]
    calls: tuple[int, ...]
    """For each producer the number of its last call that is remembered."""
    token: int = 0
    owner: int = NOBODY
    running: bool = False
    """Whether there is a lease that has not run out."""


class Job(NamedTuple):
    """A batch in the hands of a flusher, with its own copy of the tasks."""

    group: int
    start: int
    tasks: Tasks


class Flusher(NamedTuple):
    """What a flusher remembers."""

    token: int = 0
    hand: tuple[Job, ...] = ()


class Request(NamedTuple):
    """A script that a flusher asks for."""

    script: str
    flusher: int
    token: int = 0
    group: int = 0
    start: int = NEW
    tasks: Tasks = ()
    known: tuple[Job, ...] = ()


class State(NamedTuple):
    """All there is."""

    redis: Redis
    acknowledged: tuple[int, ...]
    """For each producer how many of its calls were answered."""
    flushers: tuple[Flusher, ...]


class World(NamedTuple):
    """What is tried.

    Args:
        calls: for each producer its calls: the group and the task of each.
        size: the most that a batch may hold.
        without: checks that are taken out of the scripts.
    """

    calls: tuple[tuple[tuple[int, str], ...], ...]
    size: int = 2
    flushers: int = 2
    without: frozenset[str] = frozenset()

    @property
    def start(self) -> State:
        groups = 1 + max(group for calls in self.calls for group, _ in calls)
        none = (0,) * len(self.calls)
        return State(Redis((Group(),) * groups, none), none, (Flusher(),) * self.flushers)

    def checks(self, what: str) -> bool:
        return what not in self.without


# --- the scripts -----------------------------------------------------------------------------


def add(world: World, redis: Redis, producer: int, number: int) -> Redis:
    """`add.lua`, one task a call. A call up to the last one that was remembered is not carried out
    (again). A task that waits already is not added, but its call remembered."""
    if number <= redis.calls[producer] and world.checks("calls"):
        return redis
    index, task = world.calls[producer][number - 1]
    group = redis.groups[index]
    calls = replaced(redis.calls, producer, number)
    if task in group.tasks[claimed(group) :]:
        return redis._replace(calls=calls)
    group = group._replace(tasks=(*group.tasks, task), arrived=(*group.arrived, task))
    return _with(redis, index, group)._replace(calls=calls)


def acquire(world: World, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`acquire.lua`: a lease that is free, or the flusher's own, with a larger token. What the
    leader before had claimed is free to be claimed again."""
    if redis.running and redis.owner != request.flusher:
        return redis, 0
    if world.checks("void"):
        redis = _free_claims(redis, ())
    token = redis.token + 1 if world.checks("growth") else 1
    return redis._replace(token=token, owner=request.flusher, running=True), token


def fence(world: World, redis: Redis, request: Request) -> Reply:
    """`includes/fence.lua`, with which all other scripts begin but `release`."""
    broken = world.without if request.script == "commit" else ()  # only there is it taken out
    if request.token != redis.token and "token" not in broken:
        return "STALE"
    if not redis.running and "lease" not in broken:
        return "STALE"
    return None


def renew(world: World, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`renew.lua`: since time is not counted, all it does is to tell whether the lease is over."""
    return redis, 1


def release(world: World, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`release.lua`: gives the lease back, if the token is still the newest."""
    if redis.token != request.token:
        return redis, 0
    return _free_claims(redis, ())._replace(running=False, owner=NOBODY), 1


def recall(world: World, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`recall.lua`: frees all claims but those that the leader knows of."""
    return _free_claims(redis, request.known), 1


def claim(world: World, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`poll.lua` and `claim.lua`: cuts a batch from what waits in a group, or takes over one whose
    claim is free or has run out, or whose retry is due. Whatever waits for a retry holds its group.
    """
    group = redis.groups[request.group]
    if request.start == NEW:
        start = group.base + claimed(group)
        count = group.base + len(group.tasks) - start
        if not count or group.held:
            return redis, None
        if world.checks("size"):
            count = min(count, world.size)
    else:
        batch = batch_at(group, request.start)
        if batch is None:
            return redis, None
        start, count, place = batch
        if place == RETRY:
            group = group._replace(held=group.held - 1)
    tasks = group.tasks[start - group.base : start - group.base + count]
    group = _put(group, Batch(start, count, CLAIMED))
    return _with(redis, request.group, group), Job(request.group, start, tasks)


def commit(world: World, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`commit_stream.lua` and its like: enqueues the merged task and removes the batch."""
    group = redis.groups[request.group]
    status = _may_leave(world, group, request)
    if status != "OK":
        return redis, status
    return _with(redis, request.group, _close(group, request, request.tasks)), status


def bury(world: World, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`bury.lua`: moves the batch with its tasks to the dead letters."""
    group = redis.groups[request.group]
    status = _may_leave(world, group, request)
    if status != "OK":
        return redis, status
    tasks = group.tasks[: len(request.tasks)]
    return _with(redis, request.group, _close(group, request, tasks)), status


def retry(world: World, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """`retry.lua`: gives the batch back, to be claimed again later."""
    group = redis.groups[request.group]
    batch = batch_at(group, request.start)
    if batch is None or batch.place == RETRY:
        return redis, 0
    group = _put(group, batch._replace(place=RETRY))._replace(held=group.held + 1)
    return _with(redis, request.group, group), 1


def _may_leave(world: World, group: Group, request: Request) -> str:
    """What `includes/commit.lua` and `bury.lua` look at first."""
    batch = batch_at(group, request.start)
    if (batch is None or batch.place == RETRY) and world.checks("gone"):
        return "GONE"
    return "ORDER" if request.start != group.base and world.checks("order") else "OK"


def _close(group: Group, request: Request, leaving: Tasks) -> Group:
    """`trim_batch` and `close_batch` in `includes/batch.lua`."""
    count = len(request.tasks)
    return group._replace(
        tasks=group.tasks[count:],
        base=group.base + count,
        batches=tuple(batch for batch in group.batches if batch.start != request.start),
        left=group.left + leaving,
    )


def _free_claims(redis: Redis, known: tuple[Job, ...]) -> Redis:
    """The `ZUNIONSTORE` that sets the scores of all claims to 0, but for those that are known."""
    for index, group in enumerate(redis.groups):
        for batch in group.batches:
            mine = any((job.group, job.start) == (index, batch.start) for job in known)
            if batch.place == CLAIMED and not mine:
                group = _put(group, batch._replace(place=FREE))
                redis = _with(redis, index, group)
    return redis


def batch_at(group: Group, start: int) -> Batch | None:
    return next((batch for batch in group.batches if batch.start == start), None)


def claimed(group: Group) -> int:
    return sum(batch.size for batch in group.batches)


def _put(group: Group, new: Batch) -> Group:
    others = [batch for batch in group.batches if batch.start != new.start]
    return group._replace(batches=tuple(sorted((*others, new))))


def _with(redis: Redis, index: int, group: Group) -> Redis:
    return redis._replace(groups=replaced(redis.groups, index, group))


def replaced(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])


_SCRIPTS: dict[str, Callable[[World, Redis, Request], tuple[Redis, Reply]]] = {
    each.__name__: each for each in (acquire, renew, release, recall, claim, commit, bury, retry)
}


def carry_out(world: World, redis: Redis, request: Request) -> tuple[Redis, Reply]:
    """Runs a flusher's script."""
    if request.script not in ("acquire", "release") and fence(world, redis, request):
        return redis, "STALE"
    return _SCRIPTS[request.script](world, redis, request)
