"""How much of a batch one call carries, so that no script keeps Redis busy for long."""

from __future__ import annotations

from collections.abc import Sequence

from redisagg.flusher.batch import Claim, Enqueue, MergeOutcome
from redisagg.flusher.leader.requests import MAX_COMMIT_BYTES, Parts, max_commit_entries
from redisagg.flusher.merging.answering import size_of
from redisagg.protocol.answers import Answered

LARGE_CALL = 512 * 1024
"""Bytes of a call for which Redis may close the connection: proto-max-bulk-len and
client-query-buffer-limit are 1 MiB at least."""

MAX_ANSWERS = 500
"""Answers that one call stores."""

_PARTED_TASKS = 200
"""Tasks that failed alone of which one call makes dead letters."""

_SET_ASIDE_TASKS = 500
"""Entries that one call copies into a dead letter."""

_LOOKED_UP = 20_000_000
"""Tasks that one call may pass when it looks up single tasks by their places. Redis passes all
tasks before the place, 1,000,000 in 35 microseconds."""

_READ_AT_ONCE = 1_000
"""Most tasks of a batch whose length is exact."""


def is_large(outcome: MergeOutcome) -> bool:
    """Whether what is left to be enqueued is more than one call should carry."""
    count, enqueue = len(outcome.merged), outcome.enqueue
    if enqueue is None or count < 2:
        return False
    most = max_commit_entries(enqueue.queue.script)
    return count > most or enqueue.size > MAX_COMMIT_BYTES


def fits_one_call(claim: Claim, outcome: MergeOutcome) -> bool:
    """Whether one call can carry what is left to be enqueued, and the tasks that failed alone."""
    if is_large(outcome) or not answers_fit(outcome):
        return False
    if not outcome.failed:
        return True
    if not claim.entries and (claim.length > LARGE_CALL or claim.task_count > _READ_AT_ONCE):
        return False  # the failed tasks may have any size
    size = outcome.enqueue.size if outcome.enqueue is not None else 0
    return parts_of(claim, outcome.failed, 0, size).left == 0


def answers_fit(outcome: MergeOutcome) -> bool:
    """Whether the call that ends a batch can carry its answers too."""
    answers = outcome.answers
    if not answers:
        return True
    return len(answers) + len(outcome.merged) <= MAX_ANSWERS and size_of(answers) <= LARGE_CALL


def some_answers(answers: Sequence[Answered], start: int) -> Sequence[Answered]:
    """The answers from a place on that one call carries; one always fits."""
    end, size = start, 0
    while end < min(start + MAX_ANSWERS, len(answers)):
        size += len(answers[end][2])
        if size > LARGE_CALL and end > start:
            break
        end += 1
    return answers[start:end]


def parts_of(claim: Claim, failed: Sequence[tuple[int, str]], before: int, size: int = 0) -> Parts:
    """The next tasks that failed alone, as many as one call should move.

    Args:
        failed: the positions of all of them, each with the reason.
        before: how many of them have left.
        size: bytes that the call carries besides.
    """
    some: list[tuple[int, str]] = []
    most = _most_looked_up(_PARTED_TASKS, claim.task_count)
    for position, reason in failed[before : before + most]:
        entries = claim.entries
        size += len(reason.encode())
        size += len(entries[position]) if entries else claim.length // claim.task_count
        if size > LARGE_CALL and some:
            break
        some.append((position, reason))
    return Parts(some, before, len(failed) - before - len(some))


def most_set_aside(task_count: int) -> int:
    """How many entries of a batch one call copies into a dead letter.

    It is the same for a batch at all times: whoever repeats the calls after a death has to put the
    same entries into the same dead letters.
    """
    return _most_looked_up(_SET_ASIDE_TASKS, task_count)


def _most_looked_up(most: int, task_count: int) -> int:
    return max(1, min(most, _LOOKED_UP // max(1, task_count)))


def slice_of(enqueue: Enqueue, count: int, start: int) -> tuple[Enqueue, int]:
    """The next slice of a batch's entries.

    Args:
        count: the number of all entries.
        start: the place of the first one.

    Returns:
        Its entries, and the place behind it.
    """
    arity, keys = len(enqueue.arguments) // count, len(enqueue.entry_keys) // count
    end, size = start, 0
    last = min(start + max_commit_entries(enqueue.queue.script), count)
    while end < last:
        entry = sum(map(len, enqueue.arguments[end * arity : (end + 1) * arity]))
        if size + entry >= LARGE_CALL and end > start:
            break
        end, size = end + 1, size + entry
    entry_keys = enqueue.entry_keys[start * keys : end * keys]
    arguments = enqueue.arguments[start * arity : end * arity]
    return Enqueue(enqueue.queue, entry_keys, arguments, size), end
