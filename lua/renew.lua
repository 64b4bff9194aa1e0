-- renew: prolongs the lease of a partition while it runs.
--
-- KEYS   1 state
-- ARGV   1 fencing token  2 lease time from now, ms
-- Reply  1. A lease that ran out is not prolonged: it has to be acquired again, with a new token.

-- @include arguments
-- @include clock
-- @include fence

local state = KEYS[1]
local token, lease_ms = ARGV[1], whole_number(ARGV[2])
local now = clock()
local stale = fence(state, token, now)
if stale then return stale end

redis.call('HSET', state, 'expires', string.format('%.0f', now + lease_ms),
  'lease', string.format('%.0f', lease_ms))
return 1
