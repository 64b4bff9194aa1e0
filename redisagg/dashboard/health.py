"""Whether a namespace is healthy, and what is wrong if not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from redisagg.dashboard.formats import plural, span
from redisagg.dashboard.queries import Look
from redisagg.views import Cause, Trouble

Level = Literal["ok", "warn", "bad"]

OVERDUE_WARN = 10.0
"""Seconds overdue from which the oldest group is worth a warning."""

OVERDUE_BAD = 60.0
"""Seconds overdue from which it is bad."""


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
    cause: str = ""
    """That of a trouble, as `Trouble.cause`."""


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


_TITLES: dict[Cause, tuple[Level, str]] = {
    "partition_away": ("bad", "Partitions can't be reached"),
    "redis_full": ("bad", "Redis is full"),
    "wrong_partitions": ("bad", "The number of partitions differs"),
    "moving": ("warn", "The namespace is being moved"),
    "clock": ("warn", "A clock is off"),
    "no_flusher": ("bad", "No flusher is alive"),
    "paused": ("bad", "Flushing is paused"),
    "no_leader": ("bad", "Partitions have no leader"),
    "sink_down": ("bad", "A sink is down"),
    "concurrency": ("warn", "The limit of concurrency is reached"),
    "rate_limit": ("warn", "The rate limit is used up"),
}


def problem_of(trouble: Trouble) -> Problem:
    """A trouble as a problem."""
    default: tuple[Level, str] = ("warn", trouble.cause.replace("_", " ").capitalize())
    level, title = _TITLES.get(trouble.cause, default)
    return Problem(
        level, title, f"{trouble.text} {trouble.advice}".strip(), "flushers", trouble.cause
    )


def _problems(look: Look) -> Iterator[Problem]:
    stats = look.stats
    yield from map(problem_of, look.troubles)
    if stats.unreadable:
        yield Problem(
            "bad",
            f"{plural(len(stats.unreadable), 'partition')} can't be read",
            "A key holds a value that redisagg did not write. Find out who writes to its keys.",
            "flushers",
        )
    if look.oldest_overdue >= OVERDUE_WARN:
        yield Problem(
            "bad" if look.oldest_overdue >= OVERDUE_BAD else "warn",
            f"The oldest due group is {span(look.oldest_overdue)} late",
            f"{plural(look.groups_due, 'group is', 'groups are')} due and not claimed, "
            f"{plural(stats.batches_in_flight, 'batch is', 'batches are')} in flight. If nothing "
            "holds them, run more flushers.",
            "groups?due=1" if look.groups_due else "batches",
        )
    if stats.batches_in_retry:
        yield Problem(
            "warn",
            f"{plural(stats.batches_in_retry, 'batch waits', 'batches wait')} for a retry",
            "Their last attempt failed, or they wait for a sink. Their groups wait with them.",
            "batches?state=retry",
        )
    if stats.batches_dead:
        yield Problem(
            "warn",
            plural(stats.batches_dead, "dead letter"),
            f"{plural(stats.dead, 'task')} failed for good and wait for a decision: requeue or "
            "drop them.",
            "dead",
        )
