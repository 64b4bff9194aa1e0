-- join: adds a flusher to the live ones, or keeps it there, and lists them.
--
-- KEYS   1 flushers
-- ARGV   1 flusher id  2 time until it counts as dead, ms  3 wake channel
-- Reply  { id, ms until it counts as dead, id, ms, ... } of all live flushers

-- @include arguments
-- @include clock
-- @include live

local flushers = KEYS[1]
local flusher, lifetime_ms, channel = ARGV[1], whole_number(ARGV[2]), ARGV[3]
assert_arguments(#KEYS == 1 and #ARGV >= 3)
local now = clock()

-- This write needs no memory, so the flusher joins although memory is full.
redis.call('ZREMRANGEBYSCORE', flushers, '-inf', now)
local new = redis.call('ZADD', flushers, live_score(now, lifetime_ms), flusher) == 1
local live = {}
local entered = redis.call('ZRANGE', flushers, 0, -1, 'WITHSCORES')
for i = 1, #entered, 2 do
  local left = life_left(tonumber(entered[i + 1]), lifetime_ms, now)
  if left > 0 then
    live[#live + 1] = entered[i]
    live[#live + 1] = left
  else
    redis.call('ZREM', flushers, entered[i])
  end
end
if new then redis.call('PUBLISH', channel, 'joined') end
return live
