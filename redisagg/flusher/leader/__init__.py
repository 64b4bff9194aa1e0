"""Leading one partition for the time of one lease: claim, merge, commit.

Batches of a group are claimed in order and leave in order. Between those points they are merged
side by side: each waits in its group's lane until it is at the front.

Nothing here is needed for safety: every script checks the fencing token and the order itself. A
leader that is wrong about anything is refused, and what it held is claimed again.

Follow a batch through the modules: `claiming` takes it in hand (`hand`) and gives it to the
merger, `lanes` sends it on when it has been merged and is at the front of its group, `delivering`
takes it to a sink outside Redis, `committing` enqueues it, `settling` is for those that failed.
`leader` puts them together, `calls` and `asking` are the way to Redis.
"""

from redisagg.flusher.leader.leader import Leader

__all__ = ["Leader"]
