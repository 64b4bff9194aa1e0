"""The extensions of web frameworks and task queues."""
