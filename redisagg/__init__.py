"""Turns many small tasks into few large ones, on Redis, across any number of machines."""

from redisagg import merges
from redisagg.aggregator import Aggregator, AsyncAggregator
from redisagg.app import App, AppAggregator, run_all
from redisagg.config import AggregationConfig, default_aggregation_config
from redisagg.errors import (
    NoResult,
    RedisAggError,
    ResultTimeout,
    RetryAfter,
    TaskCancelled,
    TaskFailed,
    Unavailable,
    Unrecoverable,
)
from redisagg.merge_function import Partial, Results
from redisagg.policies import Policy
from redisagg.rate_limit import RateLimit
from redisagg.receipts import AsyncReceipt, Receipt
from redisagg.schedule import Cron
from redisagg.settings import Settings
from redisagg.task import Task, group_key_parts, group_key_text
from redisagg.timeline import BatchTimeline, TimelineStep
from redisagg.views import (
    AppliedPolicy,
    BatchInfo,
    BatchState,
    DeadLetter,
    DeadReason,
    GroupList,
    GroupPage,
    GroupState,
    Health,
    History,
    HistoryPoint,
    Location,
    PartitionStats,
    Stats,
)

__version__ = "0.1.0"

__all__ = [
    "AggregationConfig",
    "Aggregator",
    "App",
    "AppAggregator",
    "AppliedPolicy",
    "AsyncAggregator",
    "AsyncReceipt",
    "BatchInfo",
    "BatchState",
    "BatchTimeline",
    "Cron",
    "DeadLetter",
    "DeadReason",
    "GroupList",
    "GroupPage",
    "GroupState",
    "Health",
    "History",
    "HistoryPoint",
    "Location",
    "NoResult",
    "Partial",
    "PartitionStats",
    "Policy",
    "RateLimit",
    "Receipt",
    "RedisAggError",
    "ResultTimeout",
    "Results",
    "RetryAfter",
    "Settings",
    "Stats",
    "Task",
    "TaskCancelled",
    "TaskFailed",
    "TimelineStep",
    "Unavailable",
    "Unrecoverable",
    "default_aggregation_config",
    "group_key_parts",
    "group_key_text",
    "merges",
    "run_all",
]
