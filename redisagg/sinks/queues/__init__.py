"""Task queues with their own libraries, such as Celery or RQ; one module for each."""
