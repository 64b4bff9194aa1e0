"""How requests get to Redis: connections, errors, retries, over threads or asyncio."""
