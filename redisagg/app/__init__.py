"""One app, many aggregators: `App` makes them from merge functions, `run_all` runs them."""

from redisagg.app.aggregator import AppAggregator
from redisagg.app.app import App
from redisagg.app.running import run_all

__all__ = ["App", "AppAggregator", "run_all"]
