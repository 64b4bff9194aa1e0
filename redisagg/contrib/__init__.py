"""redisagg in web frameworks and task queues: one module for each, with an extra of its name."""
