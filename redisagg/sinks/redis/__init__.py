"""Queues in the same Redis, written by the commit script: a stream or a list."""
