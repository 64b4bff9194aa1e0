"""A search of all states of a scenario, with the checks of each state and step."""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

from tests.protocol.model import (
    NEW,
    NOBODY,
    RETRY,
    ClaimedBatch,
    Flusher,
    Redis,
    Request,
    Scenario,
    State,
    batch_at,
    replaced,
)
from tests.protocol.steps import Step, steps


class SearchResult(NamedTuple):
    """The result of a search."""

    states: int
    steps: int
    fault: str = ""
    trace: tuple[str, ...] = ()
    """The shortest way to the fault, one line for each step."""

    def __str__(self) -> str:
        lines = [f"{self.states:,} states, {self.steps:,} steps: {self.fault or 'no fault'}"]
        return "\n".join([*lines, *(f"{n:4}. {line}" for n, line in enumerate(self.trace, 1))])


class _Origin(NamedTuple):
    """How a state was first reached."""

    at: int
    """The index of the state before the step."""
    step: Step | None
    order: tuple[int, ...]
    """The earlier position of each flusher."""


def search(scenario: Scenario) -> SearchResult:
    """Takes every step from every state, breadth first, until a fault is found."""
    states = [scenario.start]
    places = {scenario.start: 0}
    origins: list[_Origin] = [_Origin(0, None, ())]
    before: list[list[int]] = [[]]  # for each state those from which a progress step leads to it
    taken = 0
    for at, state in enumerate(states):  # the list grows during the loop
        for step in steps(scenario, state):
            taken += 1
            fault = fault_of_step(state, step)
            then, order = _canonical(scenario, step.then)
            place = places.get(then)
            if place is None:
                fault = fault or fault_of_state(scenario, then)
                place = places[then] = len(states)
                states.append(then)
                origins.append(_Origin(at, step, order))
                before.append([])
            if fault:
                trace = _trace([*origins, _Origin(at, step, order)], -1)
                return SearchResult(len(states), taken, fault, trace)
            if step.progress:
                before[place].append(at)
    stuck = _stuck(states, before)
    if stuck is None:
        return SearchResult(len(states), taken)
    fault = "the tasks will never be enqueued, even without further failures"
    return SearchResult(len(states), taken, fault, _trace(origins, stuck))


def fault_of_state(scenario: Scenario, state: State) -> str:
    """The fault of a state, or an empty text."""
    for index, group in enumerate(state.redis.groups):
        made = Counter(task for calls in scenario.calls for where, task in calls if where == index)
        if Counter(group.arrived) - made:
            return "a call was carried out twice"
        for calls, answered in zip(scenario.calls, state.acknowledged, strict=True):
            if any(
                where == index and task not in group.arrived for where, task in calls[:answered]
            ):
                return "a task was acknowledged that is not there"
        if group.left + group.tasks != group.arrived:
            return "a task is lost, enqueued twice, or enqueued out of order"
        if len(set(group.slices)) < len(group.slices):
            return "a slice of a merge result is enqueued twice"
        labels = {(start, label) for start, _, label in (*group.slices, *group.letters)}
        if len(labels) > len({start for start, _ in labels}):
            return "parts of two merge results of a batch are done"
        if len(set(group.letters)) < len(group.letters):
            return "a task that failed alone is in two dead letters"
        for batch in group.batches:
            if batch.result and {batch.result} != {label for label, _ in batch.parts}:
                return "a stored merge result has parts of another one"
            if batch.result and len(batch.parts) < scenario.parts:
                return "a stored merge result has not all parts"
        if any(batch.task_count > scenario.size for batch in group.batches):
            return "a batch holds more than the max size"
    return ""


def fault_of_step(state: State, step: Step) -> str:
    """The fault of a step, or an empty text."""
    old, new, request = state.redis, step.then.redis, step.what
    if step.late:
        return "a call that had been answered was carried out later"
    if new is old or isinstance(request, str):
        return ""
    if request.script == "claim" and old.groups[request.group].paused:
        batch = batch_at(old.groups[request.group], request.start)
        if batch is None or batch.place == RETRY:
            return "a batch of a paused group is claimed"
    if request.script == "acquire":
        return "" if new.token > old.token else "a lease was given away without a larger token"
    over = not old.running and request.script != "release"
    return "a flusher whose lease is over has written" if over or request.token != old.token else ""


def _stuck(states: list[State], before: list[list[int]]) -> int | None:
    """The first state from which progress steps do not lead to one without tasks, or None."""
    well = {at for at, state in enumerate(states) if not any(g.tasks for g in state.redis.groups)}
    ways = deque(well)
    while ways:
        new = [at for at in before[ways.popleft()] if at not in well]
        well.update(new)
        ways.extend(new)
    return next((at for at in range(len(states)) if at not in well), None)


def _without_garbage(scenario: Scenario, state: State) -> Redis:
    """Redis without the parts of merge results that no flusher has: they never become whole."""
    redis = state.redis
    if not scenario.parts or not scenario.checks("labels"):
        return redis
    known = {each.label for flusher in state.flushers for each in flusher.in_flight}
    for index, group in enumerate(redis.groups):
        batches = tuple(
            batch._replace(
                parts=tuple(each for each in batch.parts if each[0] in {*known, batch.result})
            )
            for batch in group.batches
        )
        if batches != group.batches:
            group = group._replace(batches=batches)
            redis = redis._replace(groups=replaced(redis.groups, index, group))
    return redis


def _canonical(scenario: Scenario, state: State) -> tuple[State, tuple[int, ...]]:
    """The canonical form of a state, and the earlier position of each of its flushers.

    The newest token becomes 2 and all older ones 1: a script only checks whether a token is the
    newest, and an older one never becomes the newest again. Real tokens would make the number of
    states infinite, since a lease may change hands for ever. Flushers are alike, so they are
    sorted.
    """
    _, acknowledged, flushers = state
    redis = _without_garbage(scenario, state)
    newest, owner = redis.token, redis.owner
    known = [
        (token and (2 if token == newest else 1), in_flight, number == owner, number)
        for number, (token, in_flight) in enumerate(flushers)
    ]
    known.sort()
    order = tuple(number for *_, number in known)
    if owner != NOBODY:
        owner = order.index(owner)
    redis = Redis(redis.groups, redis.calls, 2 if newest else 0, owner, redis.running)
    named = tuple(Flusher(token, in_flight) for token, in_flight, *_ in known)
    return State(redis, acknowledged, named), order


def _trace(origins: list[_Origin], at: int) -> tuple[str, ...]:
    """The steps to a state. Each flusher has the same name in all of them."""
    ways: list[tuple[Step, tuple[int, ...]]] = []
    while (step := origins[at].step) is not None:
        ways.append((step, origins[at].order))
        at = origins[at].at
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
        elif isinstance(reply, ClaimedBatch):
            reply = f"{_batch_name(reply)}, which has {' '.join(reply.tasks)}"
        about = f" {_batch_name(what)}" if what.script in _ABOUT_A_BATCH else ""
        what = f"flusher {names[what.flusher]}: {what.script}{about}"
    said = f" -> {reply}" if reply else ""
    return f"{what}{said}{'' if step.replied else ' (reply lost)'}"


def _batch_name(of: ClaimedBatch | Request) -> str:
    return "a new batch" if of.start == NEW else f"batch {'gh'[of.group]}{of.start}"


_ABOUT_A_BATCH = ("claim", "merge", "store_result", "commit", "split", "retry", "bury")
