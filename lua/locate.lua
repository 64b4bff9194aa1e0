-- locate: says where a task is in its group. Reads only.
--
-- KEYS   1 groups  2 tasks  3 ids
-- ARGV   1 group key  2 task id  3 absolute number from which the tasks in batches are
--        looked through, or '' for all
-- Reply  { 'waiting', number of waiting tasks before it, record of the group }
--        { 'batch', its absolute number }: a batch holds it
--        { 'more', absolute number }: not found yet; call again with this number
--        { 'none' }: it is not in the group
--
-- Cost: LINDEX O(log n) times for a waiting task; of those in batches some hundred are looked at in
-- a call.

-- @include arguments
-- @include entry
-- @include group
-- @include record
-- @include waiting

local groups, tasks, ids = KEYS[1], KEYS[2], KEYS[3]
local group, id, start = ARGV[1], ARGV[2], ARGV[3]
local from = tonumber(start)
assert_arguments(#KEYS == 3 and #ARGV == 3 and (start == '' or from and from % 1 == 0))
local MOST_TASKS, MOST_BYTES = 1000, 256 * 1024  -- that one call looks at, about
local MOST_STEP = 64  -- tasks of one LRANGE

local g, foreign = read_group(groups, group)
if foreign then return redis.error_reply(FOREIGN) end
if not g then return { 'none' } end
local number = tonumber(redis.call('HGET', ids, id) or nil)
local place = number and place_of(tasks, ids, g, number, id)
if place then return { 'waiting', place - g[CLAIMED], redis.call('HGET', groups, group) } end

local first = from and math.max(from - g[BASE], 0) or 0
local last = math.min(first + MOST_TASKS, g[CLAIMED])
local at, bytes, step = first, 0, 1
while at < last and bytes < MOST_BYTES do
  local entries = redis.call('LRANGE', tasks, at, math.min(at + step, last) - 1)
  if #entries == 0 then return { 'none' } end  -- somebody else removed the list
  for i = 1, #entries do
    if entry_id(entries[i]) == id then return { 'batch', g[BASE] + at + i - 1 } end
    bytes = bytes + #entries[i]
  end
  at = at + #entries
  step = math.max(1, math.min(MOST_STEP, math.floor(MOST_BYTES / 4 * (at - first) / (bytes + 1))))
end
if at < g[CLAIMED] then return { 'more', g[BASE] + at } end
return { 'none' }
