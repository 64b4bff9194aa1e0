-- read_tasks: returns some of the tasks of a claimed batch that is too large for one reply.
--
-- KEYS   1 state  2 groups  3 batches  4 claims  5 seen  6 seen_before  7 tasks of the group
--        8 ids of the group
-- ARGV   1 fencing token  2 batch id  3 place of the first task in the batch, from 0
--        4 dedupe window, ms; 0 for none  5 approximate maximum bytes (one task always fits)
-- Reply  { entry, entry, ... }, empty if there is no task at this place or after it; nil if the
--        batch is not in flight, or if a foreign type is in place of its tasks
--
-- The ids of the tasks leave the waiting ids here, and join those that were flushed lately. That
-- happens once, although a batch that is claimed again is read again: the same ids may wait anew.

-- @include arguments
-- @include assert_type
-- @include batch
-- @include clock
-- @include entry
-- @include fence
-- @include group
-- @include seen
-- @include seen_sets
-- @include slice
-- @include waiting

local state, groups, batches, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local seen, seen_before, tasks, ids = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local token, id, from = ARGV[1], ARGV[2], whole_number(ARGV[3])
local window_ms, max_bytes = whole_number(ARGV[4]), whole_number(ARGV[5])
assert_arguments(#KEYS == 8 and #ARGV == 5)
-- Each LRANGE walks along the list to its place; in one of a million tasks that takes long.
local MOST_READ = 250
local now = clock()
local stale = fence(state, token, now)
if stale then return stale end

local batch = read_batch(batches, id)
local g = batch and redis.call('ZSCORE', claims, id) and read_group(groups, batch[GROUP])
if not g then return false end
local entries = read_slice(tasks, g, batch, from, MOST_READ, max_bytes)
if entries.err then return false end
local read = from + #entries
if from > batch[READ] or read <= batch[READ] then return entries end

if window_ms > 0 then
  assert_type('SCARD', { seen, seen_before })
  local members = {}
  for i = batch[READ] - from + 1, #entries do
    members[#members + 1] = seen_member(batch[GROUP], entry_id(entries[i]))
  end
  remember_seen({
    state = state, seen = seen, seen_before = seen_before, window_ms = window_ms, now = now,
  }, members)
end
remove_ids(ids, entries, first_known(g, batch) - from + 1)
batch[READ] = read
redis.call('HSET', batches, id, cmsgpack.pack(batch))
return entries
