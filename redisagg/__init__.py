"""Turns many small tasks into few large ones, on Redis, across any number of machines."""

from redisagg import merges
from redisagg.aggregator import Aggregator, AsyncAggregator
from redisagg.config import AggregationConfig, default_aggregation_config
from redisagg.errors import RedisAggError, RetryAfter, Unavailable, Unrecoverable
from redisagg.merge_function import Partial
from redisagg.policies import Policy
from redisagg.rate_limit import RateLimit
from redisagg.schedule import Cron
from redisagg.task import Task, group_key_parts, group_key_text
from redisagg.views import (
    AppliedPolicy,
    BatchInfo,
    BatchState,
    DeadLetter,
    DeadReason,
    GroupPage,
    GroupState,
    PartitionStats,
    Stats,
)

__version__ = "0.1.0"

__all__ = [
    "AggregationConfig",
    "Aggregator",
    "AppliedPolicy",
    "AsyncAggregator",
    "BatchInfo",
    "BatchState",
    "Cron",
    "DeadLetter",
    "DeadReason",
    "GroupPage",
    "GroupState",
    "Partial",
    "PartitionStats",
    "Policy",
    "RateLimit",
    "RedisAggError",
    "RetryAfter",
    "Stats",
    "Task",
    "Unavailable",
    "Unrecoverable",
    "default_aggregation_config",
    "group_key_parts",
    "group_key_text",
    "merges",
]
