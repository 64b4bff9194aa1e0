-- drop: deletes a dead letter with its tasks.
--
-- KEYS   1 state  2 dead  3 tasks of the dead letter  4 result of the batch
-- ARGV   1 batch id
-- Reply  number of its tasks, 0 if there is no such dead letter

-- @include arguments
-- @include counts
-- @include dead
-- @include record
-- @include schema

local state, dead, dead_tasks, result = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id = ARGV[1]
assert_arguments(#KEYS == 4 and #ARGV >= 1)

local refused = refuse_schema(redis.call('HGET', state, 'schema'))
if refused then return refused end
local letter, foreign = read_dead(dead, id)
if foreign then return redis.error_reply(FOREIGN) end
if not letter then return 0 end
local count = letter[DEAD_TASK_COUNT]
redis.call('HDEL', dead, id)
redis.call('UNLINK', dead_tasks, result)
add_count(state, 'dead', -count)
add_count(state, 'removed', count)
return count
