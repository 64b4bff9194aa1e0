"""The ids and groups of batches that are made of tasks that failed alone.

Such a batch is in a group of its own, so that it holds back no batch of the group of its tasks. The
key of that group is the byte 0xff, the id with which the batch was made, 0xff again and the group
key of its tasks. It is no valid UTF-8, so no task can be added to it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_MARK = b"\xff"
_ID = re.compile(rb"([^\xff]*)-failed-(\d{1,7})-(\d{1,7})")
_GROUP = re.compile(rb"\xff%b\xff(.*)" % _ID.pattern, re.DOTALL)


class FailedBatch(NamedTuple):
    """A batch of tasks that failed alone, which is about to be made."""

    batch_id: bytes
    group: bytes
    """The group of its own."""
    attempts: int
    """How often its tasks have failed alone."""


def group_of(group: bytes) -> bytes:
    """The group key of the tasks of a batch, which is in this group."""
    if group[:1] != _MARK:
        return group
    found = _GROUP.fullmatch(group)
    return found[4] if found else group


def attempts_of(group: bytes) -> int:
    """How often the tasks of a batch in this group have failed alone."""
    found = _GROUP.fullmatch(group)
    return int(found[2]) if found else 0


def failed_batch(batch_id: bytes, group: bytes, position: int) -> FailedBatch:
    """The batch for tasks of another one that failed alone.

    No other batch ever gets its id: it names the batch from which the tasks came first, how often
    they have failed alone, and the place of the first of them there.

    Args:
        batch_id: the batch in which they failed.
        group: its group.
        position: the position of the first of them.
    """
    attempts = attempts_of(group) + 1
    if found := _ID.fullmatch(batch_id):
        batch_id, position = found[1], int(found[3]) + position
    new_id = b"%b-failed-%d-%d" % (batch_id, attempts, position)
    return FailedBatch(new_id, _MARK + new_id + _MARK + group_of(group), attempts)
