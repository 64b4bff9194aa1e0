-- leave: removes a flusher from the live ones.
--
-- KEYS   1 flushers  2 status; may be left out
-- ARGV   1 flusher id  2 wake channel
-- Reply  1, or 0 if it was not among them

-- @include arguments

local flushers, status = KEYS[1], KEYS[2]
local flusher, channel = ARGV[1], ARGV[2]
assert_arguments(#KEYS >= 1 and #KEYS <= 2 and #ARGV >= 2)

local removed = redis.call('ZREM', flushers, flusher)
if status then redis.pcall('HDEL', status, flusher) end  -- it may be foreign
redis.call('PUBLISH', channel, 'left')
return removed
