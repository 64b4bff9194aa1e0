-- cancel_group: removes all waiting tasks of a group. Tasks that a batch holds stay with it.
--
-- KEYS   1 state  2 groups  3 due  4 ready  5 tasks  6 ids
-- ARGV   1 group key
-- Reply  number of tasks that were cancelled

-- @include arguments
-- @include assert_type
-- @include counts
-- @include group
-- @include schema

local state, groups, due, ready, tasks, ids = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local group = ARGV[1]
assert_arguments(#KEYS == 6 and #ARGV >= 1)

local refused = refuse_schema(redis.call('HGET', state, 'schema'))
if refused then return refused end
local g = read_group(groups, group)
if not g or g[WAITING] == 0 then return 0 end
assert_type('ZCARD', { due, ready })
local cancelled, length = g[WAITING], g[BYTES]
if g[CLAIMED] == 0 then
  redis.call('UNLINK', tasks)
else
  redis.call('LTRIM', tasks, 0, g[CLAIMED] - 1)
end
redis.call('UNLINK', ids)
g[WAITING], g[BYTES] = 0, 0
no_task_waits(g)
g[IDS_FROM] = g[BASE] + g[CLAIMED]
write_group(groups, group, g)
local NO_TIME = 0  -- a group without waiting tasks is in no index, whatever the time
schedule(due, ready, group, g, NO_TIME)
add_count(state, 'waiting', -cancelled)
add_count(state, 'bytes', -length)
add_count(state, 'removed', cancelled)
return cancelled
