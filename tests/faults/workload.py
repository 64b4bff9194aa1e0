"""The groups with their limits, the tasks that can't be merged, and the settings of all nodes."""

from __future__ import annotations

from typing import Any
from zlib import crc32

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
}
"""By group. Several classes, so that each limit makes some batches due."""

PRIORITIES = {"quick": 5, "quiet": -5}
"""By the class of a group: its name without the number."""

BULKY_BYTES = 8_000
"""Size of the largest payload in a bulky group, whose batches have up to 160 kB."""

REVOKED = [group for group in LIMITS if group.startswith("revoked")]
"""The groups that `cancel_group` empties now and then."""

_POISON = {"kills": 4_000, "too large": 400, "raises": 200}
"""What the merge of a task in a poison group does, and of how many tasks one does it."""

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
}
"""Changes to `tests.support.tasks.quick_config`."""


def class_of(group: str) -> str:
    """The class of a group."""
    return group.rstrip("0123456789")


def payload_size(task: str, group: str) -> int:
    """The number of bytes that fill the payload of a task."""
    return crc32(task.encode()) % BULKY_BYTES if class_of(group) == "bulky" else 0


def poison_of(task: str, group: str) -> str | None:
    """What the merge of a task does: it raises, is too large or kills its process; None: none.

    It does so until somebody has cured the task.
    """
    if class_of(group) == "poison":
        chance = crc32(b"poison" + task.encode())
        for kind, one_of in _POISON.items():
            if chance % one_of == 0:
                return kind
    return None
