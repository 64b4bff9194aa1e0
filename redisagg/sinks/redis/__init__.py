"""A stream or a list in the same Redis as the queue."""
