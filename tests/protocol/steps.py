"""The steps that a state of the model allows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.protocol.model import (
    CLAIMED,
    NOBODY,
    ClaimedBatch,
    Flusher,
    Parted,
    Redis,
    Reply,
    Request,
    Scenario,
    State,
    add,
    batch_at,
    carry_out,
    claimed,
    replaced,
)


class Step(NamedTuple):
    """A step from a state to another."""

    what: str | Request
    reply: Reply
    then: State
    replied: bool = True
    """Whether the reply arrives."""
    late: bool = False
    """Whether this is a late copy of a call that was answered."""
    progress: bool = False
    """Whether this is a step without a failure, or the end of a lease.

    Such steps have to suffice to enqueue everything.
    """


def steps(scenario: Scenario, state: State) -> Iterator[Step]:
    """All steps that a state allows."""
    redis, acknowledged, flushers = state
    for producer, calls in enumerate(scenario.calls):
        answered = acknowledged[producer]
        # All calls that were ever made, since a copy of an older one may still arrive.
        for number in range(1, min(answered + 1, len(calls)) + 1):
            added = add(scenario, redis, producer, number)
            what = f"producer {producer}: add {calls[number - 1][1]}"
            if number > answered:
                then = State(added, replaced(acknowledged, producer, number), flushers)
                yield Step(what, "OK", then)
            if added is not redis:
                then = State(added, acknowledged, flushers)
                yield Step(what, "OK", then, replied=False, late=number <= answered)
    if redis.running:
        over = redis._replace(running=False, owner=NOBODY)
        then = State(over, acknowledged, flushers)
        yield Step("time: the lease runs out", "", then, progress=True)
    if scenario.pauses:
        for number, group in enumerate(redis.groups):
            turned = group._replace(paused=not group.paused)
            groups = replaced(redis.groups, number, turned)
            then = State(redis._replace(groups=groups), acknowledged, flushers)
            what = "resume" if group.paused else "pause"
            yield Step(f"operator: {what}", "", then, progress=group.paused)
    for index, flusher in enumerate(flushers):
        for at, label in _merges(scenario, state, flusher):
            merged = flusher.in_flight[at]._replace(label=label)
            remembers = flusher._replace(in_flight=replaced(flusher.in_flight, at, merged))
            then = State(redis, acknowledged, replaced(flushers, index, remembers))
            yield Step(_request("merge", index, flusher.token, merged), "", then, progress=True)
        for request in _requests(scenario, redis, flusher, index):
            written, reply = carry_out(scenario, redis, request)
            if reply == "STALE" and request.script != "renew":
                continue  # every refusal has the same effect; that of `renew` stands for all
            remembers = _after_reply(scenario, flusher, request, reply)
            if written is not redis or remembers is not flusher:
                then = State(written, acknowledged, replaced(flushers, index, remembers))
                yield Step(request, reply, then, progress=_is_progress(redis, request))
            if written is not redis:
                then = State(written, acknowledged, flushers)
                yield Step(request, reply, then, replied=False)
        if flusher.token:
            then = State(redis, acknowledged, replaced(flushers, index, Flusher()))
            yield Step(Request("crash", index), "it starts again", then)


def _merges(scenario: Scenario, state: State, flusher: Flusher) -> Iterator[tuple[int, int]]:
    """The batches that a flusher may merge, by their places, and the labels of the results.

    A label is one that no other merge result has that still matters.
    """
    if not scenario.parts:
        return
    for at, batch in enumerate(flusher.in_flight):
        if batch.label:
            continue
        group = state.redis.groups[batch.group]
        stored = batch_at(group, batch.start)
        used = {each.label for other in state.flushers for each in other.in_flight}
        used |= {label for _, _, label in group.slices}
        used |= {label for label, _ in stored.parts} if stored else set()
        yield at, min(set(range(1, len(used) + 2)) - used)


def _request(script: str, index: int, token: int, batch: ClaimedBatch, place: int = 0) -> Request:
    group, start, tasks, enqueued, parted, label = batch
    return Request(script, index, token, group, start, tasks, enqueued, parted, label, place)


def _requests(scenario: Scenario, redis: Redis, flusher: Flusher, index: int) -> Iterator[Request]:
    """The scripts that a flusher may send."""
    token, in_flight = flusher
    if not token:
        yield Request("acquire", index)
        return
    yield Request("renew", index, token)
    yield Request("recall", index, token, known=in_flight)
    if not in_flight:
        yield Request("release", index, token)
    held = {(batch.group, batch.start) for batch in in_flight}
    for number, group in enumerate(redis.groups):
        if len(group.tasks) > claimed(group):
            yield Request("claim", index, token, number)
        for batch in group.batches:
            if (number, batch.start) not in held:
                yield Request("claim", index, token, number, batch.start)
    for batch_in_hand in in_flight:
        is_merged = batch_in_hand.label or not scenario.parts
        for script in ("commit", "retry", "bury") if is_merged else ("retry", "bury"):
            yield _request(script, index, token, batch_in_hand)
        if scenario.splits:
            yield _request("split", index, token, batch_in_hand)
        for place in range(scenario.parts if batch_in_hand.label else 0):
            yield _request("store_result", index, token, batch_in_hand, place)


def _after_reply(scenario: Scenario, flusher: Flusher, request: Request, reply: Reply) -> Flusher:
    """The memory of a flusher after a reply."""
    if reply == "STALE" or request.script == "release":
        return Flusher()
    if request.script == "acquire":
        return Flusher(reply) if reply else flusher
    if reply is None or reply == "ORDER" or request.script in ("renew", "recall", "store_result"):
        return flusher
    if request.script == "commit" and isinstance(reply, int | Parted):
        if isinstance(reply, Parted):  # all slices are enqueued
            enqueued, parted = scenario.slices, reply.letters
        else:
            enqueued, parted = reply, request.parted
        told = tuple(
            batch._replace(enqueued=enqueued, parted=parted)
            if batch[:2] == (request.group, request.start)
            else batch
            for batch in flusher.in_flight
        )
        return flusher._replace(in_flight=told)
    in_flight = [
        batch for batch in flusher.in_flight if batch[:2] != (request.group, request.start)
    ]
    if request.script == "claim":
        in_flight.append(reply)
    return Flusher(flusher.token, tuple(sorted(in_flight)))


def _is_progress(redis: Redis, request: Request) -> bool:
    """Whether a flusher sends this without a failure and without a claim that runs out."""
    if request.script == "claim":
        batch = batch_at(redis.groups[request.group], request.start)
        return batch is None or batch.place != CLAIMED
    return request.script not in ("bury", "recall", "release", "split")
