-- bury: moves a batch whose attempts are used up, with all its tasks, to the dead letters.
--
-- KEYS  1 state  2 groups  3 batches  4 claims  5 dead  6 tasks of the group  7 tasks of the dead
-- ARGV  1 fencing token  2 batch id  3 error text  4 traceback
-- Reply 'OK', 'GONE' or 'ORDER', as in includes/commit.lua

-- @include clock
-- @include schema
-- @include fence
-- @include expect
-- @include record
-- @include counts
-- @include group
-- @include each
-- @include batch
-- @include dead

local state, groups, batches, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local dead, tasks, dead_tasks = KEYS[5], KEYS[6], KEYS[7]
local id = ARGV[2]
local now = clock()
local stale = fence(state, ARGV[1], now)
if stale then return stale end

local batch = read_batch(batches, id)
if not batch or not redis.call('ZSCORE', claims, id) then return 'GONE' end
local group = batch[GROUP]
local g = read_group(groups, group)
if not g then return 'GONE' end  -- foreign bytes: the batch stays claimed until they are gone
if not is_head(g, batch) then return 'ORDER' end

expect('LLEN', { dead_tasks })
redis.call('HSET', dead, id, pack_dead(batch, batch[COUNT], now, ARGV[3], ARGV[4]))
if batch[COUNT] == g[WAITING] + g[CLAIMED] then
  redis.call('RENAME', tasks, dead_tasks)
else
  each('RPUSH', dead_tasks, redis.call('LRANGE', tasks, 0, batch[COUNT] - 1))
  redis.call('LTRIM', tasks, batch[COUNT], -1)
end
close_batch(batches, claims, id, batch, g)
write_group(groups, group, g)
add_count(state, 'claimed', -batch[COUNT])
add_count(state, 'bytes', -batch[LENGTH])
add_count(state, 'dead', batch[COUNT])
return 'OK'
