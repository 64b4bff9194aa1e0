-- bury: moves a batch with all its tasks to the dead letters, a slice per call. Sent when its
-- attempts are used up. The dead letter appears with the last slice. If the leader dies before, the
-- next one claims the rest and goes on; then the arguments 3 to 5 are those of the first call. The
-- merge result is kept if a part of it has been enqueued, or tasks that failed alone have left;
-- else it is removed.
--
-- KEYS   1 state  2 groups  3 batches  4 claims  5 dead  6 tasks of the group
--        7 tasks of the dead letter  8 ids of the group  9 result of the batch
-- ARGV   1 fencing token  2 batch id  3 number of attempts  4 error text  5 traceback
--        and 'begin' to move no task yet: from then on the batch has to be buried, so that its
--        answers can be stored (answer.lua)
-- Reply  'OK', 'GONE' or 'ORDER', as in includes/commit.lua; 'MORE' if there is another slice

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
-- @include slice
-- @include waiting

local state, groups, batches, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local dead, tasks, dead_tasks, ids, result = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local token, id, attempts = ARGV[1], ARGV[2], whole_number(ARGV[3])
local error, traceback = ARGV[4], ARGV[5]
local only_begins = #ARGV == 6 and ARGV[6] == 'begin'
assert_arguments(#KEYS == 9 and (#ARGV == 5 or only_begins))
local now = clock()
local stale = fence(state, token, now)
if stale then return stale end

local batch = read_batch(batches, id)
if not batch or not redis.call('ZSCORE', claims, id) then return 'GONE' end
local group = batch[GROUP]
local g = read_group(groups, group)
if not g then return 'GONE' end  -- foreign bytes: the batch stays claimed until they are gone
if not is_head(g, batch) then return 'ORDER' end

assert_type('HLEN', { dead })
assert_type('LLEN', { dead_tasks })
local stored = redis.call('LLEN', tasks)
local count, length = batch[TASK_COUNT], batch[LENGTH]  -- of the tasks that are moved
local begun = batch[LETTER] ~= ''
if not begun then
  batch[ATTEMPTS], batch[ERROR], batch[MERGED] = attempts, error, ''
  if batch[ENQUEUED] == 0 and batch[PARTED] == '' and batch[RESULT] ~= '' then
    redis.call('UNLINK', result)
    batch[RESULT] = ''
  end
  batch[LETTER] = pack_dead{
    batch = batch, task_count = count, length = length, died = now, error = error,
    traceback = traceback, enqueued = batch[ENQUEUED], result = batch[RESULT],
    parted = batch[PARTED],
  }
end

if only_begins then
  redis.call('HSET', batches, id, cmsgpack.pack(batch))
  return 'MORE'
elseif stored == count and not begun then
  redis.call('HSET', dead, id, batch[LETTER])  -- first: it can be refused if the memory is full
  redis.call('RENAME', tasks, dead_tasks)
  redis.call('UNLINK', ids)
else
  local entries = read_slice(tasks, g, batch, 0, SLICE_TASKS, SLICE_BYTES)
  if #entries > 0 and #entries < math.min(count, stored) then
    count, length = #entries, math.min(length, total_bytes(entries))
  end
  call_chunked('RPUSH', dead_tasks, entries)
  redis.call('LTRIM', tasks, #entries, -1)
  remove_ids(ids, entries, first_known(g, batch) + 1)  -- of a batch that was never read
end
local done = count == batch[TASK_COUNT]
if done then
  redis.call('HSET', dead, id, batch[LETTER])
  redis.call('HDEL', batches, id)
  redis.call('ZREM', claims, id)
  leave_group(g, batch)
else
  shorten_batch(batches, id, batch, g, count, length)
end
write_group(groups, group, g)
add_count(state, 'claimed', -count)
add_count(state, 'bytes', -length)
add_count(state, 'dead', count)
if done then add_count(state, 'failed', 1) end
return done and 'OK' or 'MORE'
