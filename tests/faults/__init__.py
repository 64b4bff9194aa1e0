"""Faults on real processes, and a check of everything that was promised meanwhile.

`python -m tests.faults --help` runs it for longer than the tests do. A run goes like this:

- `topologies` starts the servers, `fleet` the producers and flushers (`node`) as processes of their
  own, each behind proxies of its own (`network`).
- Each process keeps a journal of what it did (`history`), which outlives its SIGKILL.
- `nemeses` does damage, at random from a seed, and repairs it.
- When all is repaired, what was enqueued is read back, and `checker`, a pure function, compares it
  with the journals.
- `run` is the sequence of these, `report` the table.
"""
