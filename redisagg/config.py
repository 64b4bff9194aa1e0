"""The settings of an aggregator and their checks."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from redisagg.durations import Duration, seconds, to_seconds
from redisagg.errors import InvalidConfig, InvalidTask
from redisagg.events import Event, OnEvent
from redisagg.merge_function import GroupAggregator as GroupAggregator
from redisagg.merge_function import check_merge_function
from redisagg.merges import collect
from redisagg.rate_limit import RateLimit
from redisagg.schedule import Cron
from redisagg.task import MAX_BYTES, check_size
from redisagg.texts import shorten

_DEFAULT_SPANS = (120.0, 600.0)  # of group_grace_period and group_max_delay, in seconds
_LONGEST_RESULT_TTL = 49 * 24 * 3600.0  # seconds: 32 bits of ms
_MAX_ENTRY_HEAD_BYTES = 7 + 128  # a stored task has a time, the length of its id and the id


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationConfig:
    """The settings of an aggregator.

    Durations are seconds or a `timedelta`, and are kept as seconds.

    Args:
        group_grace_period: seconds without a new task after which a group is due; 120 by default.
            None: it is not due for that.
        group_max_delay: seconds after which a group is due, counted from the arrival of its oldest
            task; 600 by default. A group is due at the earlier of the two times. None: it is not
            due for that. One of the two is needed, or a schedule.
        group_max_size: number of waiting tasks at which a group is due at once, and the largest
            number of tasks in a batch; 20 by default.
        group_max_bytes: bytes of waiting tasks at which a group is due at once, and the most bytes
            in a batch of several tasks; None (default) for no limit. A task counts with its packed
            size, its id and 7 bytes. A task that is larger is a batch of its own.
        group_max_weight: the same for the sum of `Task.weight`; None (default) for no limit.
        group_min_interval: seconds between two batches of a group at least, unless it is flushed;
            None (default) for no limit.
        group_leading: whether the first task of a group is due at once, and what follows when
            `group_min_interval` has passed since the last batch; False by default.
        group_schedule: a `Cron`: the first task of a group fixes its next occurrence as the time at
            which the group is due, unless another rule is earlier; None (default) for no schedule.
            With one, `group_grace_period` and `group_max_delay` are None if both have their
            defaults.
        group_aggregator: merge function, plain or ``async``; `merges.collect` by default, which
            puts all payloads into one task. A plain function runs in a thread.
        partitions: number of parts into which the groups are split, 16 by default. It is the
            largest number of flushers that can share the work, and is fixed when the namespace is
            first used.
        concurrency: number of batches that a flusher merges at the same time, 16 by default.
        max_concurrency: number of batches that all flushers together merge or deliver at the same
            time; None (default) for no limit. Of this and the next three settings see
            docs/work-limits.md. All flushers need the same values.
        group_concurrency: the same for the batches of one group; None (default) for no limit.
        rate_limit: a `RateLimit` for the merges of all flushers together; None (default) for no
            limit.
        group_rate_limit: a `RateLimit` for the merges of each group; None (default) for no limit.
        executor: ``"thread"`` (default) or ``"process"``, for plain merge functions. Processes suit
            merges that need much CPU; the merge function and the sink must be importable
            (pickle).
        merge_timeout: seconds that a merge may take before it counts as failed; 60 by default. A
            thread can't be stopped, so a plain function should have time limits of its own.
        max_attempts: number of attempts after which a batch goes to the dead letters, 10 by
            default. Merging and enqueueing have this number each. Attempts do not count while the
            sink fails for all batches.
        retry_delay: seconds before the second attempt, 1 by default; doubled for each further
            attempt, with jitter. Also the first pause, in seconds, of a sink that fails for all
            batches.
        retry_max_delay: longest delay between two attempts in seconds, 300 by default.
        isolate_failures: whether a batch whose merge failed is split in halves until the tasks
            that fail are alone; False by default. For merge functions that can't tell which task is
            bad. Each half is merged after `retry_delay`; a task that fails alone is a dead letter
            at once.
        on_task_failure: what becomes of tasks that a merge function or a sink returns in
            `Partial(failed=...)`: ``"dead"`` (default): each is a dead letter of its own.
            ``"retry"``: they form a batch of their own, which is tried again outside the order of
            their group, and are dead letters when they have failed `max_attempts` times.
        lease_time: seconds for which a flusher leads a partition without renewing its lease; 10 by
            default. Another flusher takes over the work of a dead one within this time.
        max_task_bytes: largest size of a packed task in bytes, 1 MiB by default.
        max_merged_bytes: largest size in bytes of all merged tasks of a batch, 64 MiB by default;
            as they are serialized, and as the sink writes them. A batch with more becomes a dead
            letter. A larger one could be refused by Redis together with other batches.
        linger: seconds that an add waits so that other adds share its round trip; 0 (default) for
            no wait. Adds that come while a round trip is under way share the next one anyway.
        add_timeout: seconds for which a call retries lost connections before it raises
            `RedisUnavailable`; 30 by default. No add is retried for more than a day.
        max_pending_tasks: largest number of tasks that may wait or be in flight; None (default) for
            no limit. Further tasks are refused with `AggregatorFull`. Each partition has an equal
            share, so a few large groups can fill theirs while other partitions have room. Allow
            well more than open groups hold while they wait to be due.
        max_pending_bytes: largest number of bytes of the tasks that wait or are in flight; None
            (default) for no limit. A task counts with its packed size, its id and 7 bytes. Split
            among the partitions as `max_pending_tasks` is.
        full_timeout: seconds that an add waits for room before it raises `AggregatorFull`, also
            when Redis is out of memory; 0 (default) for no wait. Later adds of the same group and
            aggregator wait behind it.
        dedupe_window: seconds after a flush for which the ids of its tasks are refused in their
            group; adding such an id changes nothing. 0 (default) for no memory of flushed ids. An
            id is kept for up to twice this time, in about 60 bytes and the lengths of id and group
            key. Producers and flushers need the same value.
        min_replicas: number of replicas that must acknowledge an add before it returns (WAIT), so
            that a failover to one of them keeps it; 0 by default. See docs/replication.md.
        wait_for_fsync: whether an add returns only when it is on the disk of the server and of
            `min_replicas` replicas (WAITAOF); False by default. Needs Redis 7.2 with
            ``appendonly yes``.
        replica_timeout: seconds that one attempt waits for replicas or disk, 1 by default. An add
            repeats it until `add_timeout`, and then raises `NotReplicated`.
        shutdown_timeout: seconds that `stop` waits for merges that are running, 30 by default.
        on_event: function that is called with each event of the flusher, plain or ``async``; None
            (default) for none. See docs/events.md. It neither slows nor ends the flusher, whatever
            it does.
        event_kinds: classes of the events that `on_event` is called with, or base classes of them
            such as `BatchEvent`; None (default) for all. Others cost the flusher nothing.
        result_ttl: seconds for which the outcome of a submitted task is kept, an hour by default,
            49 days at most; see docs/results.md.
        history: whether the flusher records what happens in the namespace, every 20 seconds; True
            by default. See docs/history.md.

    Raises:
        InvalidConfig: a setting is out of range or of the wrong type.
    """

    group_grace_period: Duration | None = _DEFAULT_SPANS[0]
    group_max_delay: Duration | None = _DEFAULT_SPANS[1]
    group_max_size: int = 20
    group_max_bytes: int | None = None
    group_max_weight: int | None = None
    group_min_interval: Duration | None = None
    group_leading: bool = False
    group_schedule: Cron | None = None
    group_aggregator: GroupAggregator = collect
    partitions: int = 16
    concurrency: int = 16
    max_concurrency: int | None = None
    group_concurrency: int | None = None
    rate_limit: RateLimit | None = None
    group_rate_limit: RateLimit | None = None
    executor: Literal["thread", "process"] = "thread"
    merge_timeout: Duration = 60.0
    max_attempts: int = 10
    retry_delay: Duration = 1.0
    retry_max_delay: Duration = 300.0
    isolate_failures: bool = False
    on_task_failure: Literal["dead", "retry"] = "dead"
    lease_time: Duration = 10.0
    max_task_bytes: int = 1024 * 1024
    max_merged_bytes: int = 64 * 1024 * 1024
    linger: Duration = 0.0
    add_timeout: Duration = 30.0
    max_pending_tasks: int | None = None
    max_pending_bytes: int | None = None
    full_timeout: Duration = 0.0
    dedupe_window: Duration = 0.0
    min_replicas: int = 0
    wait_for_fsync: bool = False
    replica_timeout: Duration = 1.0
    shutdown_timeout: Duration = 30.0
    on_event: OnEvent | None = None
    event_kinds: Collection[type[Event]] | None = None
    result_ttl: Duration = 3600.0
    history: bool = True

    def __post_init__(self) -> None:
        self._check_schedule()
        for name in ("group_grace_period", "group_max_delay", "group_min_interval"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, to_seconds(given, name, InvalidConfig))
        rules = (self.group_grace_period, self.group_max_delay, self.group_schedule)
        if all(rule is None for rule in rules):
            raise InvalidConfig(
                "group_grace_period and group_max_delay are both None, so that a group would be "
                "due only when full; set one of them, or group_schedule"
            )
        if not isinstance(self.group_leading, bool):
            raise InvalidConfig(f"group_leading must be True or False, not {self.group_leading!r}")
        if self.group_leading and self.group_min_interval is None:
            raise InvalidConfig("group_leading needs group_min_interval; set it")
        for name, most in (("group_max_bytes", MAX_BYTES), ("group_max_weight", 2**50)):
            if (limit := getattr(self, name)) is not None:
                check_range(name, limit, 1, most)
        for name in (
            "merge_timeout",
            "retry_delay",
            "retry_max_delay",
            "lease_time",
            "add_timeout",
            "replica_timeout",
            "shutdown_timeout",
            "result_ttl",
        ):
            object.__setattr__(self, name, to_seconds(getattr(self, name), name, InvalidConfig))
        try:
            for name in ("linger", "full_timeout", "dedupe_window"):
                if (given := getattr(self, name)) != 0.0:
                    object.__setattr__(self, name, to_seconds(given, name, InvalidConfig))
            check_size(self.group_max_size, "group_max_size")
        except InvalidTask as error:
            raise InvalidConfig(str(error)) from None
        check_range("partitions", self.partitions, 1, 4096)
        check_range("concurrency", self.concurrency, 1, 10_000)
        for name in ("max_concurrency", "group_concurrency"):
            if (limit := getattr(self, name)) is not None:
                check_range(name, limit, 1, 1_500)  # as lua/includes/permits.lua
        for name in ("rate_limit", "group_rate_limit"):
            rate = getattr(self, name)
            if rate is not None and not isinstance(rate, RateLimit):
                raise InvalidConfig(f"{name} must be a RateLimit, not {type(rate).__name__}")
        self.check_batches(self.group_max_size, self.group_max_weight, "group_")
        check_range("max_attempts", self.max_attempts, 1, 1_000_000)
        check_range("min_replicas", self.min_replicas, 0, 1_000)
        check_range("max_task_bytes", self.max_task_bytes, 1, 512 * 1024 * 1024)
        check_range("max_merged_bytes", self.max_merged_bytes, 1024, 512 * 1024 * 1024)
        for name in ("max_pending_tasks", "max_pending_bytes"):
            if (limit := getattr(self, name)) is not None:
                check_range(name, limit, self.partitions, 2**53)  # at least 1 a partition
        share = (self.max_pending_bytes or math.inf) // self.partitions
        if share < self.max_task_bytes + _MAX_ENTRY_HEAD_BYTES:
            raise InvalidConfig(
                f"each of the {self.partitions} partitions has a share of {share:,.0f} bytes of "
                f"max_pending_bytes, less than a task of {self.max_task_bytes:,} bytes "
                "(max_task_bytes); raise max_pending_bytes or lower max_task_bytes"
            )
        if seconds(self.result_ttl) > _LONGEST_RESULT_TTL:
            raise InvalidConfig(f"result_ttl must be at most 49 days, not {self.result_ttl!r}")
        if seconds(self.lease_time) < 0.1:
            raise InvalidConfig(f"lease_time must be at least 0.1 seconds, not {self.lease_time!r}")
        if not isinstance(self.wait_for_fsync, bool):
            raise InvalidConfig(
                f"wait_for_fsync must be True or False, not {self.wait_for_fsync!r}"
            )
        if self.waits_for_replicas and seconds(self.replica_timeout) > seconds(self.add_timeout):
            raise InvalidConfig(
                f"replica_timeout must be at most add_timeout ({self.add_timeout:g} seconds), "
                f"not {self.replica_timeout:g}"
            )
        if not isinstance(self.isolate_failures, bool):
            raise InvalidConfig(
                f"isolate_failures must be True or False, not {self.isolate_failures!r}"
            )
        if self.on_task_failure not in ("dead", "retry"):
            raise InvalidConfig(
                f"on_task_failure must be 'dead' or 'retry', not {self.on_task_failure!r}"
            )
        if not isinstance(self.history, bool):
            raise InvalidConfig(f"history must be True or False, not {self.history!r}")
        if self.executor not in ("thread", "process"):
            raise InvalidConfig(f"executor must be 'thread' or 'process', not {self.executor!r}")
        check_merge_function(self.group_aggregator, "group_aggregator")
        if self.on_event is not None and not callable(self.on_event):
            raise InvalidConfig(
                f"on_event must be a function of one event, not {shorten(self.on_event)}"
            )
        if self.event_kinds is not None:
            self._check_event_kinds(self.event_kinds)

    def _check_event_kinds(self, kinds: object) -> None:
        if not isinstance(kinds, Collection):
            raise InvalidConfig(f"event_kinds must be classes of events, not {shorten(kinds)}")
        for each in kinds:
            if not (isinstance(each, type) and issubclass(each, Event)):
                raise InvalidConfig(
                    f"event_kinds must be classes of redisagg.events, not {shorten(each)}"
                )
        if not kinds:
            raise InvalidConfig("event_kinds is empty: leave out on_event instead")

    def _check_schedule(self) -> None:
        if self.group_schedule is None:
            return
        if not isinstance(self.group_schedule, Cron):
            raise InvalidConfig(
                f"group_schedule must be a Cron, not {type(self.group_schedule).__name__}"
            )
        if (self.group_grace_period, self.group_max_delay) == _DEFAULT_SPANS:
            # Else no group would ever wait for its schedule.
            object.__setattr__(self, "group_grace_period", None)
            object.__setattr__(self, "group_max_delay", None)

    def check_batches(self, max_size: int | None, max_weight: int | None, prefix: str = "") -> None:
        """Checks whether the rate limits allow full batches.

        Args:
            max_size: the largest number of tasks; None for any.
            max_weight: the largest weight; None or 0 for any.
            prefix: what stands before the names of these limits.

        Raises:
            InvalidConfig: a full batch alone would exceed a rate limit.
        """
        for name in ("rate_limit", "group_rate_limit"):
            rate: RateLimit | None = getattr(self, name)
            if rate is not None and rate.of == "tasks" and (max_size or 0) > rate.limit:
                raise InvalidConfig(
                    f"a batch may have {max_size:,} tasks ({prefix}max_size), more than {name} "
                    f"allows at all ({rate.limit:,}); lower {prefix}max_size or raise the limit"
                )
            if rate is not None and rate.of == "weight" and not 0 < (max_weight or 0) <= rate.limit:
                raise InvalidConfig(
                    f"{name} counts weight, so {prefix}max_weight is needed, at most {rate.limit:,}"
                )

    @property
    def limits_work(self) -> bool:
        """Whether batches need permits, since something limits all flushers together."""
        return any(
            each is not None
            for each in (
                *(self.max_concurrency, self.group_concurrency),
                *(self.rate_limit, self.group_rate_limit),
            )
        )

    @property
    def waits_for_replicas(self) -> bool:
        """Whether adds wait for replicas or for the disk, not just for the primary's reply."""
        return self.min_replicas > 0 or self.wait_for_fsync


def check_range(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raises `InvalidConfig` unless the value is a whole number in a range.

    Args:
        name: the name of the setting, for the error message.
        value: the value.
        least: the smallest number of the range.
        most: the largest number of the range; None for no limit.
    """
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or value < least
        or (most is not None and value > most)
    ):
        limits = f"from {least:,}" if most is None else f"from {least:,} to {most:,}"
        raise InvalidConfig(f"{name} must be a whole number {limits}, not {shorten(value)}")


def default_aggregation_config(**changes: Any) -> AggregationConfig:
    """Returns the default settings: grace period 2 minutes, max delay 10 minutes, max size 20.

    Args:
        changes: settings in place of the defaults, by name; see `AggregationConfig`.

    Raises:
        InvalidConfig: a setting is out of range or of the wrong type.
    """
    return AggregationConfig(**changes)
