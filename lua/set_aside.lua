-- set_aside: copies entries of a claimed batch that can't be decoded to the dead letters, so that
-- the batch can be committed without them. Repeating it changes nothing.
--
-- KEYS  1 state  2 groups  3 batches  4 dead  5 tasks of the group  6 tasks of the dead letter
-- ARGV  1 fencing token  2 batch id  3 id of the dead letter  4 error text
--       then the places of the entries in the batch, from 0
-- Reply 'OK' or 'GONE'

-- @include clock
-- @include schema
-- @include fence
-- @include expect
-- @include record
-- @include counts
-- @include group
-- @include batch
-- @include dead

local state, groups, batches, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local tasks, dead_tasks = KEYS[5], KEYS[6]
local now = clock()
local stale = fence(state, ARGV[1], now)
if stale then return stale end

local batch = read_batch(batches, ARGV[2])
local g = batch and read_group(groups, batch[GROUP])
if not g then return 'GONE' end
-- Here already, or requeued and in flight: a second one would share its id.
if redis.call('HEXISTS', dead, ARGV[3]) == 1 or redis.call('HEXISTS', batches, ARGV[3]) == 1 then
  return 'OK'
end
expect('LLEN', { dead_tasks })
local head = batch[START] - g[BASE]
local count = #ARGV - 4
redis.call('HSET', dead, ARGV[3], pack_dead(batch, count, now, ARGV[4], ''))
for i = 5, #ARGV do
  redis.call('RPUSH', dead_tasks, redis.call('LINDEX', tasks, head + tonumber(ARGV[i])))
end
add_count(state, 'dead', count)
return 'OK'
