"""Every exception that redisagg raises on purpose; all derive from :class:`RedisAggError`.

Errors about an argument are also `ValueError` or `TypeError`, errors about a timeout also
`TimeoutError`, so that code that knows nothing of redisagg still catches the right thing.
"""

from __future__ import annotations


class RedisAggError(Exception):
    """The base of all errors of redisagg."""


# --- what the caller handed over -------------------------------------------------------------


class InvalidConfig(RedisAggError, ValueError):
    """A setting is out of range or of the wrong type."""


class InvalidTask(RedisAggError, ValueError):
    """A field of a task is missing, out of range or of the wrong type."""


class InvalidGroupKey(InvalidTask):
    """A group key is empty, longer than 512 bytes of UTF-8, or of a type without a string form."""


class PayloadError(InvalidTask, TypeError):
    """A payload holds something that msgpack and the documented mapping can't carry."""


class TaskTooLarge(InvalidTask):
    """A packed task is larger than `max_task_bytes`."""


# --- what Redis answered ---------------------------------------------------------------------


class RedisUnavailable(RedisAggError, TimeoutError):
    """Redis could not be reached within the timeout.

    Whether the last attempt was carried out is unknown. Calling again with the same `Task` is
    safe while it still waits: a waiting id is not added twice.
    """


class NotReplicated(RedisUnavailable):
    """Fewer replicas than `min_replicas` acknowledged within the timeout, or, with
    `wait_for_fsync`, it is not on disk yet.

    The tasks are on the primary, and are flushed if it lives. Calling again with the same `Task` is
    safe while it still waits.
    """


class TooFewReplicas(RedisUnavailable):
    """The server takes no writes, since fewer replicas follow it than its `min-replicas-to-write`.

    Nothing was written by the last attempt; one before it whose reply was lost may have been
    carried out.
    """


class AuthenticationFailed(RedisAggError):
    """Redis refused the user name, the password or the right to run a command; or one side does
    not trust the certificate of the other."""


class AggregatorFull(RedisAggError):
    """Nothing more can be added right now; nothing was written. Try again later, or let
    `full_timeout` do that."""


class RedisOutOfMemory(AggregatorFull):
    """Redis reached its `maxmemory`; nothing was written."""


class RedisReadOnly(RedisAggError):
    """The server is a read-only replica; nothing was written. Connect to the primary."""


class KeyConflict(RedisAggError):
    """A key that belongs to redisagg holds what redisagg did not write, such as a value of another
    type; nothing was written to it."""


class NamespaceMismatch(RedisAggError):
    """The namespace was created with another number of partitions or another key schema."""


class StaleLease(RedisAggError):
    """The lease of a partition has passed to another flusher or has expired."""


class UnexpectedReply(RedisAggError):
    """Redis refused a command for a reason that redisagg has no better name for."""


# --- merging and enqueueing ------------------------------------------------------------------


class MergeError(RedisAggError):
    """The merge function raised or returned something that is neither a `Task` nor `None`."""


class MergeTimeout(MergeError, TimeoutError):
    """The merge function took longer than `merge_timeout` seconds."""


class UndecodableTask(RedisAggError):
    """A stored task is not what `add` writes; its bytes are kept among the dead letters."""


class SinkError(RedisAggError):
    """A sink can't take part in what was asked of it."""


class UnknownBatch(RedisAggError, KeyError):
    """No dead letter has that batch id."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return Exception.__str__(self)


# --- the embedded server ---------------------------------------------------------------------


class EmbeddedServerError(RedisAggError):
    """No Redis server was found on this machine, or the one found did not start."""
