-- locate: says where a task is in its group. Reads only.
--
-- KEYS   1 groups  2 tasks  3 ids
-- ARGV   1 group key  2 task id
--        3 absolute number from which the tasks in batches are looked through, or '' for all
--        4 how many of them this call looks at
-- Reply  { 'waiting', number of waiting tasks before it, record of the group }
--        { 'batch', its absolute number }: a batch holds it
--        { 'more', absolute number, bytes that were looked at }: not found yet; call again with
--        this number
--        { 'none' }: it is not in the group
--
-- Cost: LINDEX O(log n) times for a waiting task, or LRANGE once.

-- @include arguments
-- @include entry
-- @include group
-- @include record
-- @include waiting

local groups, tasks, ids = KEYS[1], KEYS[2], KEYS[3]
local group, id, start, most = ARGV[1], ARGV[2], ARGV[3], whole_number(ARGV[4])
local from = tonumber(start)
assert_arguments(#KEYS == 3 and #ARGV == 4 and (start == '' or from and from % 1 == 0))
local MOST_TASKS = 1000
most = math.max(1, math.min(most, MOST_TASKS))

local g, foreign = read_group(groups, group)
if foreign then return redis.error_reply(FOREIGN) end
if not g then return { 'none' } end
local number = tonumber(redis.call('HGET', ids, id) or nil)
local place = number and place_of(tasks, ids, g, number, id)
if place then return { 'waiting', place - g[CLAIMED], redis.call('HGET', groups, group) } end

local first = from and math.max(from - g[BASE], 0) or 0
local last = math.min(first + most, g[CLAIMED])
if first >= last then return { 'none' } end
local entries, bytes = redis.call('LRANGE', tasks, first, last - 1), 0
for i = 1, #entries do
  if entry_id(entries[i]) == id then return { 'batch', g[BASE] + first + i - 1 } end
  bytes = bytes + #entries[i]
end
if #entries == 0 or last == g[CLAIMED] then return { 'none' } end
return { 'more', g[BASE] + last, bytes }
