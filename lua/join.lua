-- join: enters a flusher among the live ones, or keeps it there, and lists them.
--
-- KEYS  1 flushers
-- ARGV  1 flusher id  2 for how long, ms  3 wake channel
-- Reply { id, ms until it counts as dead, id, ms, ... }, all live flushers

-- @include clock

local flushers = KEYS[1]
local now = clock()
redis.call('ZREMRANGEBYSCORE', flushers, '-inf', now)
local new = redis.call('ZADD', flushers, now + tonumber(ARGV[2]), ARGV[1]) == 1
local members = redis.call('ZRANGE', flushers, 0, -1, 'WITHSCORES')
for i = 2, #members, 2 do members[i] = tonumber(members[i]) - now end
if new then redis.call('PUBLISH', ARGV[3], 'joined') end
return members
