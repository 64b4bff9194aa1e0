"""Merging by an `async` function, on the event loop of the flusher."""

from __future__ import annotations

from redisagg.config import AggregationConfig
from redisagg.flusher.batch import Batch, Claim, Failure, MergeOutcome
from redisagg.flusher.merging.merger import TaskMerger
from redisagg.flusher.merging.steps import (
    TOO_LATE,
    PermitExpired,
    arguments,
    check_permit,
    prepare,
    route_result,
)
from redisagg.sinks.limited_calls import AwaitedCalls
from redisagg.sinks.routing import Router
from redisagg.texts import group_text, logger

_log = logger("merges")


class LoopMerger(TaskMerger):
    """Awaits the merge function.

    A merge that exceeds its timeout is cancelled. If `most_hung` merges ignore that, no further one
    begins.
    """

    def __init__(self, config: AggregationConfig, router: Router) -> None:
        super().__init__(config, router, config.concurrency)
        self._calls = AwaitedCalls("the merge function", self.most_hung)

    async def _work(self, batch: Batch) -> None:
        if not batch.begin():
            return
        if self._calls.full:
            outcome = self.refused(batch.claim, self._calls.hung)
        else:
            outcome = await self._merge(batch.claim)
        batch.end_merge(outcome)

    async def _merge(self, claim: Claim) -> MergeOutcome:
        outcome = MergeOutcome()
        try:
            group, tasks = prepare(claim, outcome, self.router)
        except BaseException as error:
            outcome.failure = Failure.of(error)
            return outcome
        if not tasks:
            return outcome
        # A merge may end in CancelledError or SystemExit too: what it raises is in `ended`, so a
        # CancelledError here means that this merger is closed.
        given = arguments(claim, outcome, group, tasks, self.informed)
        try:
            check_permit(claim)
        except PermitExpired:
            outcome.failure = TOO_LATE
            return outcome
        if claim.span is not None:
            claim.span.enter()  # of this asyncio task, which ends with the merge
        ended = await self._calls.run(self.function, *given, timeout=self.timeout)  # type: ignore[arg-type]
        if ended is None:
            _log.warning(
                "a merge of group '%s' is cancelled after merge_timeout; %d of %d cancelled merges "
                "hang",
                *(group_text(claim.group), self._calls.hung, self.most_hung),
            )
            return self.timed_out()
        try:
            if ended.error is not None:
                raise ended.error
            route_result(claim, outcome, self.router, tasks, ended.value)
        except BaseException as error:
            outcome.failure = Failure.of(error)
        return outcome
