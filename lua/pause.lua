-- pause: stops or resumes claims in a partition. Tasks can still be added, and batches in flight
-- are finished.
--
-- KEYS   1 state
-- ARGV   1 '1' to pause, '0' to resume  2 wake channel
--        3 partition number/number of partitions, such as 3/16  4 who pauses; may be left out
-- Reply  1 if this changed something, else 0

-- @include arguments
-- @include clock
-- @include partitions
-- @include schema

local state = KEYS[1]
local pause, channel, place, by = ARGV[1] == '1', ARGV[2], ARGV[3], ARGV[4] or ''
local LONGEST_NAME = 256
assert_arguments(#KEYS == 1 and #ARGV >= 3 and #by <= LONGEST_NAME)

local schema, stored_partitions = unpack(redis.call('HMGET', state, 'schema', 'partitions'))
local refused = refuse_schema(schema) or refuse_partitions(stored_partitions, place)
if refused then return refused end
if pause then
  if redis.call('HEXISTS', state, 'paused') == 1 then return 0 end
  local since = string.format('%.0f', clock())
  return redis.call('HSET', state, 'paused', 1, 'paused_by', since .. ' ' .. by) > 0 and 1 or 0
end
local changed = redis.call('HDEL', state, 'paused')
redis.call('HDEL', state, 'paused_by')
redis.call('HSET', state, 'wake', 0)
redis.call('PUBLISH', channel, partition_number(place))
return changed
