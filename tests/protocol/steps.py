"""What may happen in a state of the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.protocol.model import (
    CLAIMED,
    NOBODY,
    Flusher,
    Redis,
    Reply,
    Request,
    State,
    World,
    add,
    batch_at,
    carry_out,
    claimed,
    replaced,
)


class Step(NamedTuple):
    """A step that a state allows."""

    what: str | Request
    reply: Reply
    then: State
    heard: bool = True
    """Whether the reply gets back."""
    late: bool = False
    """Whether it is a copy of a call that was answered long ago."""
    helps: bool = False
    """Whether it is one of those that must suffice to get everything enqueued: what flushers do
    when all goes well, and the end of a lease."""


def steps(world: World, state: State) -> Iterator[Step]:
    """All steps that a state allows."""
    redis, acknowledged, flushers = state
    for producer, calls in enumerate(world.calls):
        answered = acknowledged[producer]
        # All calls that were ever made: of the older ones, a copy may be on its way still.
        for number in range(1, min(answered + 1, len(calls)) + 1):
            added = add(world, redis, producer, number)
            what = f"producer {producer}: add {calls[number - 1][1]}"
            if number > answered:
                then = State(added, replaced(acknowledged, producer, number), flushers)
                yield Step(what, "OK", then)
            if added is not redis:
                then = State(added, acknowledged, flushers)
                yield Step(what, "OK", then, heard=False, late=number <= answered)
    if redis.running:
        over = redis._replace(running=False, owner=NOBODY)
        then = State(over, acknowledged, flushers)
        yield Step("time: the lease runs out", "", then, helps=True)
    for index, flusher in enumerate(flushers):
        for request in _requests(redis, flusher, index):
            written, reply = carry_out(world, redis, request)
            if reply == "STALE" and request.script != "renew":
                continue  # what comes of it is the same whatever was refused
            remembers = _heard(flusher, request, reply)
            if written is not redis or remembers is not flusher:
                then = State(written, acknowledged, replaced(flushers, index, remembers))
                yield Step(request, reply, then, helps=_goes_well(redis, request))
            if written is not redis:
                then = State(written, acknowledged, flushers)
                yield Step(request, reply, then, heard=False)
        if flusher.token:
            then = State(redis, acknowledged, replaced(flushers, index, Flusher()))
            yield Step(Request("crash", index), "it starts again", then)


def _requests(redis: Redis, flusher: Flusher, index: int) -> Iterator[Request]:
    """What a flusher may ask for."""
    token, hand = flusher
    if not token:
        yield Request("acquire", index)
        return
    yield Request("renew", index, token)
    yield Request("recall", index, token, known=hand)
    if not hand:
        yield Request("release", index, token)
    held = {(job.group, job.start) for job in hand}
    for number, group in enumerate(redis.groups):
        if len(group.tasks) > claimed(group):
            yield Request("claim", index, token, number)
        for batch in group.batches:
            if (number, batch.start) not in held:
                yield Request("claim", index, token, number, batch.start)
    for job in hand:
        for script in ("commit", "retry", "bury"):
            yield Request(script, index, token, *job)


def _heard(flusher: Flusher, request: Request, reply: Reply) -> Flusher:
    """What a flusher remembers after a reply."""
    if reply == "STALE" or request.script == "release":
        return Flusher()
    if request.script == "acquire":
        return Flusher(reply) if reply else flusher
    if reply is None or reply == "ORDER" or request.script in ("renew", "recall"):
        return flusher
    hand = [job for job in flusher.hand if job[:2] != (request.group, request.start)]
    if request.script == "claim":
        hand.append(reply)
    return Flusher(flusher.token, tuple(sorted(hand)))


def _goes_well(redis: Redis, request: Request) -> bool:
    """Whether a flusher asks for this though nothing has failed and no claim had to run out."""
    if request.script == "claim":
        batch = batch_at(redis.groups[request.group], request.start)
        return batch is None or batch.place != CLAIMED
    return request.script not in ("bury", "recall", "release")
