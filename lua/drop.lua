-- drop: deletes a dead letter with its tasks.
--
-- KEYS  1 state  2 dead  3 tasks of the dead letter
-- ARGV  1 batch id
-- Reply number of its tasks, 0 if there is no such dead letter.

-- @include schema
-- @include counts
-- @include dead

local newer = refuse_schema(redis.call('HGET', KEYS[1], 'schema'))
if newer then return newer end
local packed = redis.call('HGET', KEYS[2], ARGV[1])
if not packed then return 0 end
local count = cmsgpack.unpack(packed)[DEAD_COUNT]
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('UNLINK', KEYS[3])
add_count(KEYS[1], 'dead', -count)
return count
