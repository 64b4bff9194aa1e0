"""The protocol with Redis: key names, Lua scripts, operations, and the form of stored data."""
