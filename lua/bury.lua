-- bury: moves a batch with all its tasks to the dead letters. Sent when its attempts are used up.
--
-- KEYS   1 state  2 groups  3 batches  4 claims  5 dead  6 tasks of the group
--        7 tasks of the dead letter  8 ids of the group
-- ARGV   1 fencing token  2 batch id  3 number of attempts  4 error text  5 traceback
-- Reply  'OK', 'GONE' or 'ORDER', as in includes/commit.lua

-- @include arguments
-- @include assert_type
-- @include batch
-- @include call_chunked
-- @include clock
-- @include counts
-- @include dead
-- @include fence
-- @include group
-- @include waiting

local state, groups, batches, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local dead, tasks, dead_tasks, ids = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local token, id, attempts = ARGV[1], ARGV[2], whole_number(ARGV[3])
local error, traceback = ARGV[4], ARGV[5]
assert_arguments(#KEYS == 8 and #ARGV == 5)
local now = clock()
local stale = fence(state, token, now)
if stale then return stale end

local batch = read_batch(batches, id)
if not batch or not redis.call('ZSCORE', claims, id) then return 'GONE' end
local group = batch[GROUP]
local g = read_group(groups, group)
if not g then return 'GONE' end  -- foreign bytes: the batch stays claimed until they are gone
if not is_head(g, batch) then return 'ORDER' end

assert_type('LLEN', { dead_tasks })
local length = redis.call('LLEN', tasks)
batch[ATTEMPTS] = attempts
local count = batch[TASK_COUNT]
redis.call('HSET', dead, id, pack_dead{
  batch = batch, task_count = count, died = now, error = error, traceback = traceback,
})
if length == count then
  redis.call('RENAME', tasks, dead_tasks)
  redis.call('UNLINK', ids)
else
  local entries = redis.call('LRANGE', tasks, 0, count - 1)
  call_chunked('RPUSH', dead_tasks, entries)
  redis.call('LTRIM', tasks, count, -1)
  remove_ids(ids, entries, first_known(g, batch) + 1)  -- of a batch that was never read
end
close_batch(batches, claims, id, batch, g)
write_group(groups, group, g)
add_count(state, 'claimed', -count)
add_count(state, 'bytes', -batch[LENGTH])
add_count(state, 'dead', count)
return 'OK'
