-- join: adds a flusher to the live ones, or keeps it there, and lists them.
--
-- KEYS   1 flushers
-- ARGV   1 flusher id  2 time until it counts as dead, ms  3 wake channel
-- Reply  { id, ms until it counts as dead, id, ms, ... } of all live flushers

-- @include arguments
-- @include clock

local flushers = KEYS[1]
local flusher, lifetime_ms, channel = ARGV[1], whole_number(ARGV[2]), ARGV[3]
assert_arguments(#KEYS == 1 and #ARGV >= 3)
local now = clock()

-- This write needs no memory, so the flusher joins although memory is full.
redis.call('ZREMRANGEBYSCORE', flushers, '-inf', now)
local new = redis.call('ZADD', flushers, now + lifetime_ms, flusher) == 1
local live = redis.call('ZRANGE', flushers, 0, -1, 'WITHSCORES')
for i = 2, #live, 2 do live[i] = tonumber(live[i]) - now end
if new then redis.call('PUBLISH', channel, 'joined') end
return live
