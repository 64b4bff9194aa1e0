"""The groups with their limits, the tasks that can't be merged, and the settings of all nodes."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple
from zlib import crc32

from redisagg import Policy
from tests.faults.history import Limits

NAME = "tests"

LIMITS = {
    **{f"quick{n}": Limits(0.2, 1.0, 10) for n in range(8)},
    **{f"large{n}": Limits(0.5, 2.0, 100) for n in range(6)},
    **{f"quiet{n}": Limits(1.0, 3.0, 5) for n in range(8)},
    **{f"single{n}": Limits(1.0, 1.0, 1) for n in range(2)},
    **{f"bulky{n}": Limits(0.5, 2.0, 20) for n in range(2)},
    **{f"revoked{n}": Limits(1.0, 2.0, 100) for n in range(2)},
    **{f"poison{n}": Limits(0.2, 1.0, 10) for n in range(2)},
    **{f"partly{n}": Limits(0.3, 1.0, 20) for n in range(3)},
    **{f"{name}{n}": Limits(3.0, 3.0, 20) for name in ("mixed", "cooled") for n in range(6)},
    **{f"changed{n}": Limits(3.0, 3.0, 20) for n in range(3)},
}
"""By group. Several classes, so that each limit makes some batches due."""

RULED = ("mixed", "changed", "cooled")
"""The classes of groups whose tasks have limits of all kinds; for these, `LIMITS` has the most that
`rules_of` gives."""

MAX_WEIGHT = 30
MIN_INTERVAL = 0.7
POLICIES = {
    "mixed*": Policy(max_weight=MAX_WEIGHT),
    "changed*": Policy(max_weight=MAX_WEIGHT),
    "cooled*": Policy(min_interval=MIN_INTERVAL, leading=True),
}
"""By pattern, where Redis does not lose them."""

PRIORITIES = {"quick": 5, "quiet": -5}
"""By the class of a group: its name without the number."""

BULKY_BYTES = 8_000
"""Size of the largest payload in a bulky group, whose batches have up to 160 kB."""

FAILS_ALONE = "fails alone"
"""What the merge of a task does that becomes a dead letter of its own, while the rest is done."""

REVOKED = [group for group in LIMITS if group.startswith("revoked")]
"""The groups that `cancel_group` empties now and then."""

_POISON = {
    "poison": {"kills": 4_000, "too large": 400, "gives up": 200, "raises": 200},
    "partly": {FAILS_ALONE: 12},
}
"""What the merge of a task does, by the class of its group, and of how many tasks one does it."""

_ASKS_FOR_TIME = 40
"""Of how many tasks of a partly group one has its batch tried again later, `TIMES_ASKED` times."""

TIMES_ASKED = 8
"""More often than `max_attempts`."""

_SUBMITTED = ("quiet", "large", "bulky", "partly", "poison")
"""The classes of groups in which some tasks are submitted."""

_FAILS_ONCE = 15
"""Of how many tasks of a partly group one fails alone in its first merge."""

LEASE = 1.0

CONFIG: dict[str, Any] = {
    "partitions": 8,
    "lease_time": LEASE,
    "merge_timeout": 1.5,
    "max_attempts": 6,
    "max_merged_bytes": 200_000,
    "max_pending_tasks": 4_000,
    "full_timeout": 0.2,
    "retry_delay": 0.05,
    "retry_max_delay": 0.5,
    "add_timeout": 1,  # shorter than most faults, so that some outcomes stay unknown
    "shutdown_timeout": 5,
    "history": True,
}
"""Changes to `tests.support.tasks.quick_config`."""


def class_of(group: str) -> str:
    """The class of a group."""
    return group.rstrip("0123456789")


class Rules(NamedTuple):
    """The limits of a task in a group of a class in `RULED`; None: it sets none."""

    grace: float | None
    delay: float | None
    size: int | None
    bytes: int | None
    weight: int
    due_at: float | None
    """Seconds since the epoch."""
    not_before: float | None
    flush: bool
    priority: int


_QUIET = 5.0
"""Seconds from one quiet time to the next: quiet are the last 0.8 of them."""


def rules_of(task: str, group: str, offered_at: float, version: int = 0) -> Rules:
    """The limits of a task, which follow from its name and the time of its offer.

    Args:
        task: its name.
        group: its group, of a class in `RULED`.
        offered_at: when it was offered, seconds since the epoch.
        version: 1 for a task that replaces another one.
    """
    rng = Random(f"{task}/{version}")
    has_delay = rng.random() < 0.7
    rules = Rules(
        grace=round(rng.uniform(0.2, 1.0), 3) if rng.random() < 0.5 else None,
        delay=round(rng.uniform(0.3, 3.0), 3) if has_delay else None,
        size=rng.randint(3, 20) if rng.random() < 0.1 else None,
        bytes=rng.randint(300, 6_000) if rng.random() < 0.1 else None,
        weight=rng.choices((0, 1, rng.randint(2, 12), 2 * MAX_WEIGHT), (10, 60, 28, 2))[0],
        due_at=round(offered_at + rng.uniform(0.2, 3.0), 3)
        if not has_delay or rng.random() < 0.1
        else None,
        not_before=None,
        flush=rng.random() < 0.01,
        priority=rng.choice((0, 0, 0, 3, -3)),
    )
    if class_of(group) == "changed":  # moments of the replaced task would have to be known
        return rules._replace(delay=rules.delay or 2.0, due_at=None, flush=False)
    if class_of(group) == "cooled":  # few tasks in an interval would not do for all that come
        return rules._replace(size=None, bytes=None)
    if class_of(group) == "mixed" and offered_at % _QUIET > _QUIET - 0.8 and rng.random() < 0.5:
        return rules._replace(not_before=offered_at - offered_at % _QUIET + _QUIET)
    return rules


def payload_size(task: str, group: str) -> int:
    """The number of bytes that fill the payload of a task."""
    most = BULKY_BYTES if class_of(group) == "bulky" else 500 if class_of(group) in RULED else 1
    return crc32(task.encode()) % most


def is_submitted(task: str, group: str) -> bool:
    """Whether the producer of a task that is offered alone wants to know its outcome."""
    return class_of(group) in _SUBMITTED and crc32(b"submit" + task.encode()) % 2 == 0


def result_of(task: str) -> str:
    """The result of a task that was submitted."""
    return task[::-1]


def poison_of(task: str, group: str) -> str | None:
    """What the merge of a task does: it raises, gives up, is too large, kills its process, or the
    task fails alone; None: none of these.

    It does so until somebody has cured the task.
    """
    chance = crc32(b"poison" + task.encode())
    for kind, one_of in _POISON.get(class_of(group), {}).items():
        if chance % one_of == 0:
            return kind
    return None


def fails_once(task: str, group: str) -> bool:
    """Whether a task fails alone in its first merge only, where it is tried again."""
    return class_of(group) == "partly" and crc32(b"once" + task.encode()) % _FAILS_ONCE == 0


def asks_for_time(task: str, group: str) -> bool:
    """Whether the merge of a task first asks for time."""
    return class_of(group) == "partly" and crc32(b"time" + task.encode()) % _ASKS_FOR_TIME == 0
