-- pause: stops or resumes claims in a partition. Adding goes on, batches in hand are finished.
--
-- KEYS  1 state
-- ARGV  1 '1' to pause, '0' to resume  2 wake channel  3 partition number
-- Reply 1 if that changed something, else 0.

-- @include schema

local newer = refuse_schema(redis.call('HGET', KEYS[1], 'schema'))
if newer then return newer end
if ARGV[1] == '1' then return redis.call('HSET', KEYS[1], 'paused', 1) end
local changed = redis.call('HDEL', KEYS[1], 'paused')
redis.call('HSET', KEYS[1], 'wake', 0)
redis.call('PUBLISH', ARGV[2], ARGV[3])
return changed
