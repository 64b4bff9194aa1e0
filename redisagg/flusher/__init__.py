"""The flusher: leads partitions, claims what is due, merges it and sees it enqueued.

`flusher` puts the parts together, `leases` decides which partitions to lead, `leader` leads one,
`merging` runs the merge function, `wakeups` listens for news.
"""
