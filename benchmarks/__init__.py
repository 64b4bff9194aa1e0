"""Benchmarks of redisagg, the bare scripts, Asynq and celery-batches. See README.md."""
