"""Checks the calls of merge functions: limits on work, and pauses they asked for. Pure functions.

What docs/work-limits.md excepts is left out: a call that hangs longer than `merge_timeout` does not
count from then on, and a process that was frozen may make the calls that it was about to make.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.faults.history import Call, History, Reply, place_of
from tests.support.provider import most_at_once, most_in_window

WORK_LIMITS = ("max_concurrency", "group_concurrency", "rate_limit", "group_rate_limit")
"""The settings that are checked."""

_EARLIER = 0.05
"""Seconds before its `merge_timeout` at which a call that hangs no longer counts."""

_FROZEN = 5.0
"""Seconds from a freeze until its flusher, which goes on, has made the calls it was about to."""

_STOPS_WITHIN = 0.25
"""Seconds until a flusher merges nothing after a merge has asked for that, on a busy machine."""


def exceeded(history: History) -> Iterator[str]:
    """The limits that were exceeded."""
    limits = history.work_limits
    if not limits:
        return
    calls = list(_counted(history))
    by_group: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_group[call.group].append(call)
    for prefix, each in (("", {"all groups": calls}), ("group_", by_group)):
        at_once = limits.get("group_concurrency" if prefix else "max_concurrency")
        rate = limits.get(f"{prefix}rate_limit")
        for name, some in each.items():
            if at_once is not None and (most := most_at_once(some)) > at_once:
                yield f"{most} merges of {name} at once, at most {at_once}"
            if rate is not None and (most := most_in_window(some, rate["per"])) > rate["limit"]:
                yield f"{most} merges of {name} within {rate['per']} s, at most {rate['limit']}"


def _counted(history: History) -> Iterator[Call]:
    """The calls that count, each with the time until which it does."""
    downs: dict[str, list[float]] = defaultdict(list)
    for down in sorted(history.downs, key=lambda each: each.at):
        downs[down.flusher].append(down.at)
    for call in history.calls:
        frozen = downs[call.flusher]
        if any(at - _EARLIER <= call.began <= at + _FROZEN for at in frozen):
            continue
        ends = [call.ended, call.began + history.merge_timeout - _EARLIER]
        ends += [at for at in frozen if at > call.began]
        yield call._replace(ended=min(ends))


def merged_while_held(history: History) -> Iterator[str]:
    """The merges of a flusher that one of its merges had asked to merge nothing."""
    by_flusher: dict[str, list[Call]] = defaultdict(list)
    for call in history.calls:
        by_flusher[call.flusher].append(call)
    for reply in history.replies:
        if reply.of_all and not _is_disturbed(history, reply):
            since, until = reply.at + _STOPS_WITHIN, reply.again_at
            if early := _began_between(by_flusher[reply.flusher], since, until):
                what = f"{reply.flusher} merged a batch of {early.group} at {early.began:.3f}"
                yield f"{what}, asked at {reply.at:.3f} to merge nothing until {until:.3f}"


def _began_between(calls: Sequence[Call], since: float, until: float) -> Call | None:
    return next((call for call in calls if since < call.began < until), None)


def _is_disturbed(history: History, reply: Reply) -> bool:
    """Whether its flusher may have been too slow to notice."""
    return any(
        each.start <= reply.again_at and reply.at <= each.end
        for each in history.disturbances
        # The disturbance that the reply itself is begins right before it.
        if "for all" not in each.kind and not each.group
        if each.place in ("", place_of(reply.flusher))
    )
