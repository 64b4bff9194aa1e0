"""The exceptions that redisagg raises on purpose; all derive from `RedisAggError`.

Errors about an argument are also `ValueError` or `TypeError`, errors about a timeout also
`TimeoutError`, so that code that does not import redisagg can catch them too.
"""

from __future__ import annotations

import copyreg
from datetime import timedelta
from typing import Any, Literal, get_args


class RedisAggError(Exception):
    """The base class of all errors of redisagg."""


# --- arguments -------------------------------------------------------------------------------


class InvalidConfig(RedisAggError, ValueError):
    """A setting, URL or name is out of range or of the wrong type. Correct it."""


class InvalidTask(RedisAggError, ValueError):
    """A field of a task, or a task id, is missing, out of range or of the wrong type.

    Correct it; the task was not written.
    """


class InvalidGroupKey(InvalidTask):
    """A group key is empty, too long, not valid Unicode or of the wrong type.

    The limit is 512 bytes of UTF-8; the types are `str`, `int`, `UUID` and tuples of those. Pass
    another key; of a long one, its hash.
    """


class PayloadError(InvalidTask, TypeError):
    """A payload holds a type that has no form in msgpack or in the format of the sink.

    Or it could not be read back. Convert it to dicts, lists, strings, numbers or bytes.
    """


class TaskTooLarge(InvalidTask):
    """A packed task is larger than `max_task_bytes`, or than Redis accepts (`proto-max-bulk-len`).

    Store large data elsewhere and put its address into the task, or raise the limit.
    """


# --- replies of Redis ------------------------------------------------------------------------


class RedisUnavailable(RedisAggError, TimeoutError):
    """Redis could not be reached within the timeout. Call again later.

    Whether Redis carried out the last attempt is unknown. Adding the same `Task` again is safe
    while the first one waits, since a waiting id is not added twice.
    """


class NotReplicated(RedisUnavailable):
    """Fewer than `min_replicas` replicas acknowledged the add within the timeout.

    With `wait_for_fsync`, also: the tasks are not on disk yet. Check the replicas, then call again.

    The tasks are on the primary, and are flushed if it survives. Adding the same `Task` again is
    safe while the first one waits.
    """


class TooFewReplicas(RedisUnavailable):
    """The server refuses writes, since it has fewer replicas than its `min-replicas-to-write`.

    Check the replicas. The last attempt wrote nothing. An earlier one whose reply was lost may
    have been carried out.
    """


class AuthenticationFailed(RedisAggError):
    """Redis refused the user name, the password or the right to run a command.

    Or one side does not trust the other's certificate. Check the credentials; docs/security.md
    lists the rights.
    """


class AggregatorFull(RedisAggError):
    """`max_pending_tasks` or `max_pending_bytes` is reached.

    Nothing was written. Add again later, or set `full_timeout`, and run more flushers if this
    lasts.
    """


class RedisOutOfMemory(AggregatorFull):
    """Redis has reached its `maxmemory`; nothing was written. Give it more memory, or add later."""


class RedisReadOnly(RedisAggError):
    """The server is a read-only replica, and stayed one within the timeout. Connect to the primary.

    The last attempt wrote nothing. An earlier one whose reply was lost may have been carried out.
    """


class KeyConflict(RedisAggError):
    """A key of redisagg holds data that redisagg did not write, such as a value of another type.

    Nothing was written to it. Find out who writes to the key, and delete it or rename the
    aggregator.
    """


class NamespaceMismatch(RedisAggError):
    """The namespace was created with another number of partitions or another key schema.

    Use the recorded number of partitions, or the version of redisagg that the other nodes use.
    """


class NamespaceInUse(RedisAggError):
    """A namespace can't be moved or removed: it is in use, or the name that it is to get is.

    Nothing was changed. Stop what the message names, or choose another name.
    """


class StaleLease(RedisAggError):
    """The lease of a partition has expired or belongs to another flusher. Flushers handle it."""


class UnexpectedReply(RedisAggError):
    """Redis refused a command with an error for which redisagg has no class of its own."""


# --- flushers --------------------------------------------------------------------------------


class FlusherFailed(RedisAggError, RuntimeError):
    """A flusher could not be started, or was ended by something that is no `Exception`.

    With gevent, run it in a process of its own. The log has the error that ended it.
    """


# --- merging and enqueueing ------------------------------------------------------------------


class MergeError(RedisAggError):
    """The merge function returned no `Task`, list of tasks or `None`, or its process died.

    Or a function of `redisagg.merges` met a task that lacks the field or the type it looks for.
    An exception of the merge function keeps its own class.
    """


class MergedTaskTooLarge(MergeError):
    """The merged tasks of a batch exceed `max_merged_bytes` or what their sink or Redis takes.

    Return less from the merge function, store large data elsewhere and enqueue its address, lower
    `group_max_size`, or raise `max_merged_bytes` or the limits of Redis.
    """


class Unrecoverable(RedisAggError):
    """Raise this in a merge function or a sink: no further attempt could succeed.

    The batch becomes a dead letter at once.
    """


RetryScope = Literal["batch", "group", "aggregator"]
"""What waits after a `RetryAfter`."""

_LONGEST_WAIT = 366 * 24 * 3600.0  # seconds


class RetryAfter(RedisAggError):
    """Raise this in a merge function or a sink: it is to be called again after a time.

    The attempt does not count.

    Args:
        seconds: seconds (or a `timedelta`) until the next attempt, up to a year. It is made after
            0.1 seconds at the earliest.
        scope: ``"batch"`` (default) or ``"group"``: the batch is tried again then, and its group
            keeps its order, so its younger batches wait too. ``"aggregator"``: this flusher merges
            nothing until then or, if a sink raised it, sends that sink nothing, for `retry_delay`
            at least.
        reason: a text for logs and listings.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
    """

    # What holds for a subclass whose constructor sets nothing.
    seconds: float = 1.0
    scope: RetryScope = "batch"

    def __init__(
        self, seconds: float | timedelta, scope: RetryScope = "batch", reason: str = ""
    ) -> None:
        wait = _checked_wait(seconds)
        if scope not in get_args(RetryScope):
            raise InvalidConfig(f"scope is one of {get_args(RetryScope)}, not {scope!r:.50}")
        super().__init__(reason or f"to be tried again in {wait:g} s")
        self.seconds = wait
        self.scope = scope

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the constructor: that of a subclass may take other arguments.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


def _checked_wait(seconds: object) -> float:
    wait = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    if not isinstance(wait, int | float) or not 0 <= wait <= _LONGEST_WAIT:
        raise InvalidConfig(f"RetryAfter takes 0 to {_LONGEST_WAIT:.0f} seconds, not {wait!r:.50}")
    return float(wait)


def wait_of(error: RetryAfter) -> float:
    """The seconds of a `RetryAfter`; 1 if a subclass has set something that they can't be."""
    try:
        return _checked_wait(error.seconds)
    except InvalidConfig:
        return RetryAfter.seconds


class Unavailable(RedisAggError):
    """Raise this in a merge function or a sink: what it calls is away, whatever the batch holds.

    The attempt does not count. After five different batches in a row, a flusher merges nothing (or
    sends the sink nothing) for a while; then a few batches try it.
    """


class MergeTimeout(MergeError, TimeoutError):
    """The merge function took longer than `merge_timeout` seconds."""


class UndecodableTask(RedisAggError):
    """A stored entry is no task of redisagg. It is moved to the dead letters with its bytes."""


class SinkError(RedisAggError):
    """A sink can't do what was asked, such as be read back, or needs a package that is missing."""


class SinkTimeout(SinkError, TimeoutError):
    """A delivery took longer than the `timeout` of its sink, or too many deliveries to it hang.

    Look at the target queue. A function should have time limits of its own.
    """


class UnknownBatch(RedisAggError, KeyError):
    """No dead letter has that batch id, or the id is no `str`. `dead_letters` lists the ids."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return Exception.__str__(self)


class UnknownTask(RedisAggError, KeyError):
    """The dead letter has no task with one of the ids. `get_dead_letter` shows them."""

    __str__ = UnknownBatch.__str__


class HalfEnqueued(RedisAggError, ValueError):
    """A part of the dead letter has been enqueued, so only all of its tasks can be requeued."""


# --- receipts --------------------------------------------------------------------------------


class ResultTimeout(RedisAggError, TimeoutError):
    """A submitted task has no outcome yet, or none any more, and the timeout of the call is over.

    Call again later. `locate` says where the task is.
    """


class TaskFailed(RedisAggError):
    """A submitted task failed: alone, or with its batch. Or the merge returned an exception for it.

    Attributes:
        reason: the error of the task or of its batch.
        batch_id: the id of the batch that held it.
        dead_letter: the id of the dead letter that holds it; None if none does.
    """

    reason: str = ""
    batch_id: str = ""
    dead_letter: str | None = None


class NoResult(RedisAggError):
    """The merge function returned no value for a submitted task: no `Results` that names it.

    Attributes:
        batch_id: the id of its batch.
        dropped: whether the merge returned no merged task either.
    """

    batch_id: str = ""
    dropped: bool = False


class TaskCancelled(RedisAggError):
    """A submitted task was removed by `cancel_task` while it waited."""


# --- the embedded server ---------------------------------------------------------------------


class EmbeddedServerError(RedisAggError):
    """No Redis server was found on this machine, or it did not start.

    Install ``redis-server`` or ``redisagg[embedded]``, or read the server's log in the message.
    """
