-- recall: frees all claims of a leader but those that it knows of: the reply to a claim was lost.
--
-- KEYS  1 state  2 claims
-- ARGV  1 fencing token  2 how long the other claims last from now, ms, then their batch ids
-- Reply 1

-- @include clock
-- @include schema
-- @include fence

local now = clock()
local stale = fence(KEYS[1], ARGV[1], now)
if stale then return stale end
if redis.call('ZCARD', KEYS[2]) > 0 then
  redis.call('ZUNIONSTORE', KEYS[2], 1, KEYS[2], 'WEIGHTS', 0)
end
local deadline = now + tonumber(ARGV[2])
for i = 3, #ARGV do redis.call('ZADD', KEYS[2], 'XX', deadline, ARGV[i]) end
return 1
