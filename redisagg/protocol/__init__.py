"""What is said to Redis: the keys, the Lua scripts, and the form of what is stored."""
