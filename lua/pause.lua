-- pause: stops or resumes claims in a partition. Tasks can still be added, and batches in flight
-- are finished.
--
-- KEYS   1 state
-- ARGV   1 '1' to pause, '0' to resume  2 wake channel  3 partition number
-- Reply  1 if this changed something, else 0

-- @include arguments
-- @include schema

local state = KEYS[1]
local pause, channel, partition = ARGV[1] == '1', ARGV[2], ARGV[3]
assert_arguments(#KEYS == 1 and #ARGV >= 3)

local refused = refuse_schema(redis.call('HGET', state, 'schema'))
if refused then return refused end
if pause then return redis.call('HSET', state, 'paused', 1) end
local changed = redis.call('HDEL', state, 'paused')
redis.call('HSET', state, 'wake', 0)
redis.call('PUBLISH', channel, partition)
return changed
