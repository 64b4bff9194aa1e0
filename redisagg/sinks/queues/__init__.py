"""Task queues with clients of their own, such as Celery or RQ; at least once, by a stable id."""
