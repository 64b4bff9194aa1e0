"""The groups with their limits, and the settings, of all processes of a run."""

from __future__ import annotations

from typing import Any

from tests.faults.history import Limits

NAME = "tests"

LIMITS = {
    **{f"quick{n}": Limits(0.2, 1.0, 10) for n in range(8)},
    **{f"large{n}": Limits(0.5, 2.0, 100) for n in range(6)},
    **{f"quiet{n}": Limits(1.0, 3.0, 5) for n in range(8)},
    **{f"single{n}": Limits(1.0, 1.0, 1) for n in range(2)},
}
"""By group. Several classes, so that each limit makes some batches due."""

LEASE = 1.0

CONFIG: dict[str, Any] = {
    "partitions": 8,
    "lease_time": LEASE,
    "merge_timeout": 1.5,
    "max_attempts": 10,
    "retry_delay": 0.05,
    "retry_max_delay": 0.5,
    "add_timeout": 1,  # shorter than most faults, so that some outcomes stay unknown
    "shutdown_timeout": 5,
}
"""Changes to `tests.support.tasks.quick_config`."""
