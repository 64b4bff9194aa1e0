-- cancel_group: takes all waiting tasks out of a group. Tasks that a batch holds stay with it.
--
-- KEYS  1 state  2 groups  3 due  4 ready  5 tasks  6 ids
-- ARGV  1 group key
-- Reply how many tasks were cancelled.

-- @include schema
-- @include record
-- @include counts
-- @include group

local state, groups, due, ready, tasks, ids = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local group = ARGV[1]

local newer = refuse_schema(redis.call('HGET', state, 'schema'))
if newer then return newer end
local g = read_group(groups, group)
if not g or g[WAITING] == 0 then return 0 end
local cancelled, length = g[WAITING], g[BYTES]
if g[CLAIMED] == 0 then
  redis.call('UNLINK', tasks)
else
  redis.call('LTRIM', tasks, 0, g[CLAIMED] - 1)
end
redis.call('UNLINK', ids)
g[WAITING], g[FLUSH], g[BYTES] = 0, 0, 0
write_group(groups, group, g)
schedule(due, ready, group, g, 0)
add_count(state, 'waiting', -cancelled)
add_count(state, 'bytes', -length)
return cancelled
