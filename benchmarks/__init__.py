"""Benchmarks: redisagg, the bare scripts and Asynq, side by side in one run. See README.md."""
