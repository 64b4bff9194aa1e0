"""Whether a namespace is healthy, and what is wrong if not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from redisagg.dashboard.formats import plural, span
from redisagg.dashboard.queries import Look

Level = Literal["ok", "warn", "bad"]

OVERDUE_WARN = 10.0
"""Seconds overdue from which the oldest group is worth a warning."""

OVERDUE_BAD = 60.0
"""Seconds overdue from which it is bad."""

CLOCK_WARN = 5.0
"""Seconds by which the clocks of Redis and of the dashboard may differ."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong."""

    level: Level
    title: str
    """A few words."""
    text: str
    """What it means, and what to do."""
    page: str = ""
    """The page that shows more, relative to the namespace."""


@dataclass(frozen=True, slots=True)
class Health:
    """The health of a namespace."""

    problems: Sequence[Problem]
    """The worst first."""

    @property
    def level(self) -> Level:
        """The level of the worst problem."""
        return self.problems[0].level if self.problems else "ok"

    @property
    def title(self) -> str:
        """The health in a few words."""
        if not self.problems:
            return "Healthy"
        rest = len(self.problems) - 1
        return self.problems[0].title + (f" (and {plural(rest, 'more problem')})" if rest else "")


def health_of(look: Look, config_full: str = "") -> Health:
    """Judges the numbers of a namespace.

    Args:
        look: the numbers.
        config_full: says that a limit on pending tasks is nearly reached; empty if none is.
    """
    found = list(_problems(look))
    if config_full:
        found.append(Problem("warn", "Nearly full", config_full))
    return Health(sorted(found, key=lambda each: each.level != "bad"))


def _problems(look: Look) -> Iterator[Problem]:
    stats = look.stats
    work = stats.pending + stats.in_flight
    if not stats.flushers:
        yield Problem(
            "bad",
            "No flusher is alive",
            f"Nothing is flushed; {plural(work, 'task')} wait. Start one: redisagg worker, or "
            "start() of an aggregator.",
            "flushers",
        )
    paused = [each.partition for each in stats.partitions if each.paused]
    if len(paused) == len(stats.partitions) and paused:
        yield Problem(
            "bad",
            "Flushing is paused",
            "Tasks can be added, but no group is flushed until somebody resumes.",
            "flushers",
        )
    elif paused:
        yield Problem(
            "bad",
            f"{plural(len(paused), 'partition is', 'partitions are')} paused",
            "A pause or resume was interrupted. Pause or resume again.",
            "flushers",
        )
    if stats.unreadable:
        yield Problem(
            "bad",
            f"{plural(len(stats.unreadable), 'partition')} can't be read",
            "A key holds a value that redisagg did not write. Find out who writes to its keys.",
            "flushers",
        )
    leaderless = [each for each in stats.partitions if each.leader is None]
    if stats.flushers and leaderless:
        waiting = sum(each.pending + each.in_flight for each in leaderless)
        yield Problem(
            "bad" if waiting else "warn",
            f"{plural(len(leaderless), 'partition has', 'partitions have')} no leader",
            f"{plural(waiting, 'task')} wait there. A flusher takes over within a lease time; if "
            "this lasts, look at the logs of the flushers.",
            "flushers",
        )
    if look.oldest_overdue >= OVERDUE_WARN:
        yield Problem(
            "bad" if look.oldest_overdue >= OVERDUE_BAD else "warn",
            f"The oldest due group is {span(look.oldest_overdue)} late",
            f"{plural(look.groups_due, 'group is', 'groups are')} due and not claimed, "
            f"{plural(stats.batches_in_flight, 'batch is', 'batches are')} in flight. If nothing "
            "holds them, run more flushers.",
            "groups?due=1",
        )
    if stats.batches_in_retry:
        yield Problem(
            "warn",
            f"{plural(stats.batches_in_retry, 'batch waits', 'batches wait')} for a retry",
            "Their last attempt failed. Their groups wait with them.",
            "batches?state=retry",
        )
    if stats.batches_dead:
        yield Problem(
            "warn",
            f"{plural(stats.batches_dead, 'dead letter')}",
            f"{plural(stats.dead, 'task')} failed for good and wait for a decision: requeue or "
            "drop them.",
            "dead",
        )
    if abs(look.clock_offset) >= CLOCK_WARN:
        word = "ahead of" if look.clock_offset > 0 else "behind"
        yield Problem(
            "warn",
            f"The clock of Redis is {span(look.clock_offset)} {word} that of the dashboard",
            "Groups are due by the clock of Redis. Check the time service of both machines.",
        )
