"""The producer: gathers the tasks of all callers into few calls of the script `add`.

Group commit, as databases do it for their log (Gray and Reuter, Transaction Processing, 1993):
tasks that come while a round trip is in flight share the next one. A lone caller waits for nobody.

Without I/O: `rounds` packs tasks into the calls of one round trip, `sequences` numbers the calls so
that Redis carries out a repeated one only once, `stream` decides which round of a stream is sent
when, `room` how often a task that finds no room is tried again. `threads` and `aio` do the I/O.
"""
