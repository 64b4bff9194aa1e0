-- extend: prolongs claims of batches that are still in hand.
--
-- KEYS  1 state  2 claims
-- ARGV  1 fencing token  2 how long the claims last from now, ms, then batch ids
-- Reply 1

-- @include clock
-- @include schema
-- @include fence

local now = clock()
local stale = fence(KEYS[1], ARGV[1], now)
if stale then return stale end
local deadline = now + tonumber(ARGV[2])
for i = 3, #ARGV do redis.call('ZADD', KEYS[2], 'XX', deadline, ARGV[i]) end
return 1
