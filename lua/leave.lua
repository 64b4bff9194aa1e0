-- leave: takes a flusher out of the live ones.
--
-- KEYS  1 flushers
-- ARGV  1 flusher id  2 wake channel
-- Reply 1, or 0 if it was not there.

local removed = redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('PUBLISH', ARGV[2], 'left')
return removed
