-- cancel_task: takes one waiting task out of its group.
--
-- KEYS  1 state  2 groups  3 due  4 ready  5 tasks  6 ids
-- ARGV  1 group key  2 task id
-- Reply 1, or 0 if no such task waits (a batch may hold it already).
--
-- Cost: O(1) to find the task unless tasks before it were cancelled since it came, then a step
-- for each of those; and one pass over the list to close the gap.

-- @include clock
-- @include schema
-- @include record
-- @include counts
-- @include group
-- @include each
-- @include entry

local state, groups, due, ready, tasks, ids = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local group, id = ARGV[1], ARGV[2]

local newer = refuse_schema(redis.call('HGET', state, 'schema'))
if newer then return newer end
local number = redis.call('HGET', ids, id)
if not number then return 0 end
local g = read_group(groups, group)
if not g then return 0 end

-- The task stood at number - BASE when it came and can only have moved towards the head since.
local place = math.min(number - g[BASE], g[CLAIMED] + g[WAITING] - 1)
while place >= g[CLAIMED] and entry_id(redis.call('LINDEX', tasks, place) or '') ~= id do
  place = place - 1
end
if place < g[CLAIMED] then return 0 end

local now = clock()
local length = #redis.call('LINDEX', tasks, place)
local last_place = g[CLAIMED] + g[WAITING] - 1
redis.call('LSET', tasks, place, '')  -- no entry is empty, so this marks just the one to remove
redis.call('LREM', tasks, place < last_place / 2 and 1 or -1, '')
redis.call('HDEL', ids, id)
g[WAITING] = g[WAITING] - 1
g[BYTES] = math.max(0, g[BYTES] - length)
refresh_head(tasks, g)
if g[WAITING] > 0 and place == last_place then
  g[LAST] = entry_arrival(redis.call('LINDEX', tasks, -1))
end
write_group(groups, group, g)
schedule(due, ready, group, g, now)
add_count(state, 'waiting', -1)
add_count(state, 'bytes', -length)
return 1
