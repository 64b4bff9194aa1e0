-- cancel_task: removes one waiting task from its group.
--
-- KEYS   1 state  2 groups  3 due  4 ready  5 tasks  6 ids  7 answer of the task
-- ARGV   1 group key  2 task id  3 channel of the answers
-- Reply  1, or 0 if no such task waits (a batch may hold it)
--
-- Cost: LINDEX once or twice if tasks are cancelled in the order of their arrival, else O(log n)
-- times; and LREM from the nearer end of the list.

-- @include answers
-- @include arguments
-- @include assert_type
-- @include clock
-- @include counts
-- @include entry
-- @include full_memory
-- @include group
-- @include schema
-- @include segments
-- @include waiting

local state, groups, due, ready, tasks, ids = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local answer = KEYS[7]
local group, id, channel = ARGV[1], ARGV[2], ARGV[3]
assert_arguments(#KEYS == 7 and #ARGV == 3)

local refused = refuse_schema(redis.call('HGET', state, 'schema'))
if refused then return refused end
write_in_full_memory(state)
local number = redis.call('HGET', ids, id)
if not number then return 0 end
local g = read_group(groups, group)
assert_type('ZCARD', { due, ready })
if not g then return 0 end

-- Answers a task that was submitted.
local function answer_cancelled(entry)
  local keep_ms = submitted_ms(entry)
  if not keep_ms then return end
  local record = cmsgpack.pack{ 'cancelled', '', '' }
  redis.pcall('SET', answer, record, 'PX', keep_ms)
  announce_answers(channel, { answer, record })
end

local last_place = g[CLAIMED] + g[WAITING] - 1
local place = place_of(tasks, ids, g, tonumber(number), id)
if not place then return 0 end

local now = clock()
local entry = redis.call('LINDEX', tasks, place)
redis.call('LSET', tasks, place, '')  -- no entry is empty, so LREM finds only this one
redis.call('LREM', tasks, place < last_place / 2 and 1 or -1, '')  -- from the nearer end
redis.call('HDEL', ids, id)
use_segments()
local length, left = segments.cancel(tasks, g, entry, place - g[CLAIMED], now)
g[WAITING] = g[WAITING] - 1
g[CANCELLED] = g[CANCELLED] + 1
g[BYTES] = g[BYTES] - length
refresh_head(tasks, g, left, now)
if g[WAITING] > 0 and place == last_place then
  g[LAST] = entry_arrival(redis.call('LINDEX', tasks, -1) or '')
end
write_group(groups, group, g)
schedule(due, ready, group, g, now)
add_count(state, 'waiting', -1)
add_count(state, 'bytes', -length)
add_count(state, 'removed', 1)
answer_cancelled(entry)
return 1
