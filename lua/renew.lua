-- renew: prolongs the lease of a partition that is still held.
--
-- KEYS  1 state
-- ARGV  1 fencing token  2 lease ms
-- Reply 1. A lease that ran out is not prolonged: it has to be acquired again, with a new token.

-- @include clock
-- @include schema
-- @include fence

local now = clock()
local stale = fence(KEYS[1], ARGV[1], now)
if stale then return stale end
redis.call('HSET', KEYS[1], 'expires', string.format('%.0f', now + tonumber(ARGV[2])))
return 1
