"""The answers to tasks that were submitted: what a merge did with each of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from redisagg.errors import MergeError, PayloadError
from redisagg.flusher.batch import Claim, MergeOutcome
from redisagg.merge_function import Results
from redisagg.protocol.answers import Answered, pack_answer, pack_failure
from redisagg.protocol.entries import entry_id, submitted_ms
from redisagg.texts import shorten


def check_results(results: Results, known: Collection[str]) -> None:
    """Checks the results that a merge returned.

    Args:
        known: the ids of the tasks of the batch.

    Raises:
        MergeError: they are no mapping, or the batch does not have one of these tasks.
    """
    values = results.values
    if not isinstance(values, Mapping):
        raise MergeError(f"Results takes a mapping of task ids, not {type(values).__name__}")
    if unknown := values.keys() - set(known):
        raise MergeError(
            f"Results names {len(unknown)} task ids that the batch does not have, such as "
            f"{shorten(next(iter(unknown)))}"
        )


def answer(
    claim: Claim,
    outcome: MergeOutcome,
    values: Mapping[str, Any],
    *,
    merged: bool,
    reason_of: Callable[[BaseException], str],
) -> None:
    """Puts the answers to all submitted tasks of a batch into its outcome.

    Args:
        outcome: has the tasks that failed alone.
        values: what the merge returned for tasks.
        merged: whether it returned merged tasks.
        reason_of: returns the text of an exception.

    Raises:
        PayloadError: msgpack has no form for a value.
    """
    batch_id = claim.batch_id.decode()
    nothing = pack_answer("merged" if merged else "dropped", batch_id)
    answers = outcome.answers = list(outcome.answers or ())
    for task_id, keep_ms in (outcome.submitted or {}).items():
        record = nothing
        if task_id in values:
            value = values[task_id]
            if isinstance(value, BaseException):
                record = pack_failure(batch_id, reason_of(value), None)
            else:
                try:
                    record = pack_answer("result", batch_id, value)
                except PayloadError as error:
                    raise PayloadError(f"the result of task {task_id!r}: {error}") from error
        answers.append((task_id.encode(), keep_ms, record))
    answer_failed(claim, outcome, claim.entries)


def answer_failed(claim: Claim, outcome: MergeOutcome, entries: Sequence[bytes]) -> None:
    """Replaces the answers to the tasks of an outcome that failed alone.

    Args:
        entries: the stored tasks of the batch.
    """
    if not outcome.answers or not outcome.failed:
        return
    batch_id = claim.batch_id.decode()
    reasons = {entry_id(entries[place]): (place, reason) for place, reason in outcome.failed}
    for number, (task_id, keep_ms, _) in enumerate(outcome.answers):
        if task_id in reasons:
            place, reason = reasons[task_id]
            record = pack_failure(batch_id, reason, f"{batch_id}-task-{place}")
            outcome.answers[number] = (task_id, keep_ms, record)


def leave_out_failed(claim: Claim, outcome: MergeOutcome) -> None:
    """Leaves out the answers to tasks that failed alone and are tried again: they come later."""
    batch_id = claim.batch_id.decode()
    records = {
        pack_failure(batch_id, reason, f"{batch_id}-task-{place}")
        for place, reason in outcome.failed
    }
    outcome.answers = [each for each in outcome.answers or () if each[2] not in records]


def answer_undecodable(claim: Claim, outcome: MergeOutcome, entry: bytes, reason: str) -> None:
    """Puts the answer to a task into the outcome that can't be decoded, if it was submitted."""
    if keep_ms := submitted_ms(entry):
        batch_id = claim.batch_id.decode()
        record = pack_failure(batch_id, reason, f"{batch_id}-undecodable")
        outcome.answers = [*(outcome.answers or ()), (entry_id(entry), keep_ms, record)]


def size_of(answers: Sequence[Answered] | None) -> int:
    """The bytes of answers."""
    return sum(len(record) for _, _, record in answers or ())
