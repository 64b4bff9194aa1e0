"""The flusher: leads partitions, claims what is due, merges it and has it enqueued.

`run` starts a `flusher`. Its lease keeper (`leases`, `assignment`) has a `leader` for each
partition that it leads. A leader claims batches (`batch`), has them merged (`merging`) and commits
them. The `listener` wakes leaders; `breaker` and `backoff` say when a sink or a batch is tried
again.
"""
