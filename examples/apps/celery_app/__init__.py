"""Clicks on links: callers call a Celery task for each, its function takes many."""
