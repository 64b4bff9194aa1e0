-- pause: stops or resumes claims in a partition. Tasks can still be added, and batches in flight
-- are finished.
--
-- KEYS   1 state
-- ARGV   1 '1' to pause, '0' to resume  2 wake channel
--        3 partition number/number of partitions, such as 3/16
-- Reply  1 if this changed something, else 0

-- @include arguments
-- @include partitions
-- @include schema

local state = KEYS[1]
local pause, channel, place = ARGV[1] == '1', ARGV[2], ARGV[3]
assert_arguments(#KEYS == 1 and #ARGV >= 3)

local schema, stored_partitions = unpack(redis.call('HMGET', state, 'schema', 'partitions'))
local refused = refuse_schema(schema) or refuse_partitions(stored_partitions, place)
if refused then return refused end
if pause then return redis.call('HSET', state, 'paused', 1) end
local changed = redis.call('HDEL', state, 'paused')
redis.call('HSET', state, 'wake', 0)
redis.call('PUBLISH', channel, partition_number(place))
return changed
