"""Fault injection into real processes, and a check of all guarantees.

`python -m tests.faults --help` makes longer runs than the tests do. The steps of a run:

- `topologies` starts the servers. `fleet` starts the producers and flushers (`node`) as separate
  processes, each behind its own proxies (`network`).
- Each process writes its actions to a journal (`history`), which outlives a SIGKILL.
- `nemeses` injects faults at random from a seed, and repairs them.
- When all faults are repaired, the enqueued batches are read back, and `checker`, a pure function,
  compares them with the journals.
- `run` makes these steps, `report` prints the table of results.
"""
