-- leave: removes a flusher from the live ones.
--
-- KEYS   1 flushers
-- ARGV   1 flusher id  2 wake channel
-- Reply  1, or 0 if it was not among them

-- @include arguments

local flushers = KEYS[1]
local flusher, channel = ARGV[1], ARGV[2]
assert_arguments(#KEYS == 1 and #ARGV >= 2)

local removed = redis.call('ZREM', flushers, flusher)
redis.call('PUBLISH', channel, 'left')
return removed
