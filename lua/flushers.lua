-- flushers: the live flushers. Unlike `join` it writes nothing.
--
-- KEYS   1 flushers
-- ARGV   none
-- Reply  the ids of all live flushers

-- @include clock
-- @include live

local flushers = KEYS[1]
local now = clock()

local live = {}
local entered = redis.call('ZRANGE', flushers, 0, -1, 'WITHSCORES')
for i = 1, #entered, 2 do
  if life_left(tonumber(entered[i + 1]), math.huge, now) > 0 then live[#live + 1] = entered[i] end
end
return live
