-- set_aside: copies undecodable entries of a claimed batch to the dead letters, so that the batch
-- can be committed without them. A repeated call changes nothing.
--
-- KEYS   1 state  2 groups  3 batches  4 dead  5 tasks of the group  6 tasks of the dead letter
-- ARGV   1 fencing token  2 batch id  3 id of the dead letter  4 error text
--        then the places of the entries in the batch, from 0
-- Reply  'OK' or 'GONE'

-- @include arguments
-- @include assert_type
-- @include batch
-- @include call_chunked
-- @include clock
-- @include counts
-- @include dead
-- @include entry
-- @include fence
-- @include group

local state, groups, batches, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local tasks, dead_tasks = KEYS[5], KEYS[6]
local token, id, letter_id, error = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local FIRST_PLACE = 5
assert_arguments(#KEYS == 6 and #ARGV >= 4)
local now = clock()
local stale = fence(state, token, now)
if stale then return stale end

local batch = read_batch(batches, id)
local g = batch and read_group(groups, batch[GROUP])
if not g then return 'GONE' end
-- The letter may exist, or be requeued and in flight: a second one would have the same id.
local known = redis.call('HEXISTS', dead, letter_id) + redis.call('HEXISTS', batches, letter_id)
if known > 0 then return 'OK' end
assert_type('LLEN', { dead_tasks })
local head = batch[START] - g[BASE]
local entries = {}
for at = FIRST_PLACE, #ARGV do
  -- A place without an entry: somebody else removed the list, and there is nothing to keep.
  entries[#entries + 1] = redis.call('LINDEX', tasks, head + whole_number(ARGV[at])) or nil
end
local count = #entries
if count == 0 then return 'OK' end
redis.call('HSET', dead, letter_id, pack_dead{
  batch = batch, task_count = count, length = total_bytes(entries), died = now, error = error,
  traceback = '',
})
call_chunked('RPUSH', dead_tasks, entries)
add_count(state, 'dead', count)
return 'OK'
