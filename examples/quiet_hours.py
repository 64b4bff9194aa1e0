"""Quiet hours: what comes between 22:00 and 7:00 of a user's time zone leaves at 7:00, together.

`not_before` is a moment, not a duration, so that the night in which the clocks change is an hour
shorter or longer. A full group waits as well; only a flush is earlier.
"""

from __future__ import annotations

import os
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from redisagg import AggregationConfig, Aggregator, Task
from redisagg.sinks import StreamSink

_EVENING, _MORNING = time(22), time(7)


def quiet_until(now: datetime, zone: str) -> datetime | None:
    """Returns the end of the quiet hours that a moment is in; None outside of them."""
    local = now.astimezone(ZoneInfo(zone))
    if _MORNING <= local.time() < _EVENING:
        return None
    day = local.date() + timedelta(days=local.time() >= _EVENING)
    return datetime.combine(day, _MORNING, local.tzinfo)


def message(user: str, text: str, now: datetime, zone: str) -> Task:
    """A message for a user, which does not wake them."""
    return Task("message", text, ("user", user), not_before=quiet_until(now, zone))


aggregator = Aggregator(
    "quiet",
    os.environ.get("REDISAGG_URL", "redis://localhost:6379/0"),
    config=AggregationConfig(group_grace_period=30, group_max_delay=300),
    sink=StreamSink("messages", format="json"),
)


def main() -> None:
    """Prints how long messages of 23:00 wait in three nights, and adds a message of now."""
    for month, day in ((3, 27), (3, 28), (10, 24)):
        late = datetime(2026, month, day, 23, tzinfo=ZoneInfo("Europe/Berlin"))
        held = message("ann", "hello", late, "Europe/Berlin").not_before
        assert held is not None
        print(f"{late:%d %B}: {(held.timestamp() - late.timestamp()) / 3600:.0f} hours")
    with aggregator:
        aggregator.add_task(message("ann", "hi", datetime.now().astimezone(), "Europe/Berlin"))
        aggregator.flush_all()  # so that the example ends at once
        aggregator.wait_until_idle(timeout=10)
        print(len(aggregator.read_sink().batches), "batch")


if __name__ == "__main__":
    main()
