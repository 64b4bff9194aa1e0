"""Looking at every state that a world can get into, and at what must hold in each."""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

from tests.protocol.model import NEW, NOBODY, Flusher, Job, Redis, Request, State, World
from tests.protocol.steps import Step, steps


class Finding(NamedTuple):
    """What a search came to."""

    states: int
    steps: int
    fault: str = ""
    trace: tuple[str, ...] = ()
    """How the fault came about, in as few steps as can be."""

    def __str__(self) -> str:
        lines = [f"{self.states:,} states, {self.steps:,} steps: {self.fault or 'all is well'}"]
        return "\n".join([*lines, *(f"{n:4}. {line}" for n, line in enumerate(self.trace, 1))])


class _Way(NamedTuple):
    """How a state was come by first: from which state, and in which order its flushers now are."""

    at: int
    step: Step | None
    order: tuple[int, ...]


def search(world: World) -> Finding:
    """Takes every step from every state, the nearest to the start first, up to a fault."""
    states = [world.start]
    places = {world.start: 0}
    came: list[_Way] = [_Way(0, None, ())]
    before: list[list[int]] = [[]]  # the states from which a helpful step leads to each
    taken = 0
    for at, state in enumerate(states):  # it grows meanwhile
        for step in steps(world, state):
            taken += 1
            fault = fault_of_step(state, step)
            then, order = _plain(step.then)
            place = places.get(then)
            if place is None:
                fault = fault or fault_of_state(world, then)
                place = places[then] = len(states)
                states.append(then)
                came.append(_Way(at, step, order))
                before.append([])
            if fault:
                trace = _trace([*came, _Way(at, step, order)], -1)
                return Finding(len(states), taken, fault, trace)
            if step.helps:
                before[place].append(at)
    stuck = _stuck(states, before)
    if stuck is None:
        return Finding(len(states), taken)
    fault = "what is there now will never be enqueued, though all goes well from now on"
    return Finding(len(states), taken, fault, _trace(came, stuck))


def fault_of_state(world: World, state: State) -> str:
    """What is wrong with a state, if anything is."""
    for index, group in enumerate(state.redis.groups):
        made = Counter(task for calls in world.calls for where, task in calls if where == index)
        if Counter(group.arrived) - made:
            return "a call was carried out twice"
        for calls, answered in zip(world.calls, state.acknowledged, strict=True):
            if any(
                where == index and task not in group.arrived for where, task in calls[:answered]
            ):
                return "a task was acknowledged that is not there"
        if group.left + group.tasks != group.arrived:
            return "a task is lost, enqueued twice, or enqueued out of order"
        if any(batch.size > world.size for batch in group.batches):
            return "a batch holds more than the max size"
    return ""


def fault_of_step(state: State, step: Step) -> str:
    """What is wrong with a step, if anything is."""
    old, new, request = state.redis, step.then.redis, step.what
    if step.late:
        return "a call that had been answered was carried out later"
    if new is old or isinstance(request, str):
        return ""
    if request.script == "acquire":
        return "" if new.token > old.token else "a lease was given away without a larger token"
    over = not old.running and request.script != "release"
    return "a flusher whose lease is over has written" if over or request.token != old.token else ""


def _stuck(states: list[State], before: list[list[int]]) -> int | None:
    """The first state from which helpful steps don't lead to one where nothing is left to do."""
    well = {at for at, state in enumerate(states) if not any(g.tasks for g in state.redis.groups)}
    ways = deque(well)
    while ways:
        new = [at for at in before[ways.popleft()] if at not in well]
        well.update(new)
        ways.extend(new)
    return next((at for at in range(len(states)) if at not in well), None)


def _plain(state: State) -> tuple[State, tuple[int, ...]]:
    """The one state that stands for all that differ in names only, and the order of its flushers.

    The newest token becomes 2 and all older ones 1: a script only asks whether a token is the
    newest, and one that is not will never be again. With the real numbers there would be no end
    of states, as a lease may change hands for ever. Flushers are all alike, so they are sorted.
    """
    redis, acknowledged, flushers = state
    newest, owner = redis.token, redis.owner
    known = [
        (token and (2 if token == newest else 1), hand, number == owner, number)
        for number, (token, hand) in enumerate(flushers)
    ]
    known.sort()
    order = tuple(number for *_, number in known)
    if owner != NOBODY:
        owner = order.index(owner)
    redis = Redis(redis.groups, redis.calls, 2 if newest else 0, owner, redis.running)
    named = tuple(Flusher(token, hand) for token, hand, *_ in known)
    return State(redis, acknowledged, named), order


def _trace(came: list[_Way], at: int) -> tuple[str, ...]:
    """The steps to a state, with the same names for the same flushers all the way."""
    ways: list[tuple[Step, tuple[int, ...]]] = []
    while (step := came[at].step) is not None:
        ways.append((step, came[at].order))
        at = came[at].at
    names = "ABCD"
    lines: list[str] = []
    for step, order in reversed(ways):
        lines.append(_line(step, names))
        names = "".join(names[number] for number in order)
    return tuple(lines)


def _line(step: Step, names: str) -> str:
    what, reply = step.what, step.reply
    if isinstance(what, Request):
        if what.script == "acquire":
            reply = "it leads, with a new token"
        elif isinstance(reply, Job):
            reply = f"{_batch_name(reply)}, which has {' '.join(reply.tasks)}"
        about = f" {_batch_name(what)}" if what.script in _ABOUT_A_BATCH else ""
        what = f"flusher {names[what.flusher]}: {what.script}{about}"
    said = f" -> {reply}" if reply else ""
    return f"{what}{said}{'' if step.heard else ' (nobody hears it)'}"


def _batch_name(of: Job | Request) -> str:
    return "a new batch" if of.start == NEW else f"batch {'gh'[of.group]}{of.start}"


_ABOUT_A_BATCH = ("claim", "commit", "retry", "bury")
