"""Leads one partition for the time of one lease: claim, merge, deliver, commit.

`inflight` holds the batches and decides what may happen next. `claimer` polls and claims,
`deliverer` calls sinks outside Redis, `committer` commits, gives back or buries. Each reports its
events to `inflight`. `session` sends `requests` while the lease lasts, `sink_health` knows which
sinks work, and `leader` wires them together.

Nothing here is needed for safety. Every script checks the fencing token and the order itself, so a
leader that is wrong is refused, and its batches are claimed again.
"""

from redisagg.flusher.leader.leader import Leader

__all__ = ["Leader"]
