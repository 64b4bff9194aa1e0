"""Sends requests to Redis, from threads or asyncio: connections, errors, retries.

`endpoint` makes clients from a URL or from the caller's client. `threads` and `aio` run operations
on them. Both drive `round_trip`, which has the rules of one round trip without sockets, `retrying`
(what to do after a lost connection), `failures` (what an error reply means), `durability` (waiting
for replicas) and `nodes` (which node of a cluster a script call goes to).
"""
