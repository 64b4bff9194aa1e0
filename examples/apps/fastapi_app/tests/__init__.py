"""Tests by the fixtures of redisagg's kit."""
