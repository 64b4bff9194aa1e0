-- requeue: makes a dead letter a batch again, under the same batch id and ahead of all other tasks
-- of its group. It is merged anew.
--
-- KEYS   1 state  2 groups  3 batches  4 retry  5 due  6 ready  7 dead  8 tasks of the group
--        9 tasks of the dead letter
-- ARGV   1 batch id  2 wake channel  3 partition number
-- Reply  number of its tasks, 0 if there is no such dead letter

-- @include arguments
-- @include assert_type
-- @include batch
-- @include call_chunked
-- @include clock
-- @include counts
-- @include dead
-- @include group
-- @include record
-- @include schema
-- @include wake

local state, groups, batches, retry = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local due, ready, dead, tasks, dead_tasks = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local id, channel, partition = ARGV[1], ARGV[2], ARGV[3]
assert_arguments(#KEYS == 9 and #ARGV >= 3)
local now = clock()

local refused = refuse_schema(redis.call('HGET', state, 'schema'))
if refused then return refused end
local letter, foreign = read_dead(dead, id)
if foreign then return redis.error_reply(FOREIGN) end
if not letter then return 0 end
local group = letter[DEAD_GROUP]
local count, length = redis.call('LLEN', dead_tasks), letter[DEAD_LENGTH]
local g, foreign_group = read_group(groups, group)
if foreign_group then return redis.error_reply(FOREIGN) end
g = g or new_group()
local stored = redis.call('LLEN', tasks)
assert_type('HLEN', { batches })
assert_type('ZCARD', { retry, due, ready })

-- Puts the tasks of the dead letter before those of the group. The shorter list is copied.
local function move_tasks()
  if stored < count then
    redis.call('RENAME', dead_tasks, dead_tasks)  -- changes nothing: a user may lack the right
    call_chunked('RPUSH', dead_tasks, redis.call('LRANGE', tasks, 0, -1))
    redis.call('RENAME', dead_tasks, tasks)
    return
  end
  local entries, reversed = redis.call('LRANGE', dead_tasks, 0, -1), {}
  for i = 1, count do reversed[i] = entries[count + 1 - i] end
  call_chunked('LPUSH', tasks, reversed)
  redis.call('UNLINK', dead_tasks)
end

move_tasks()
g[BASE] = g[BASE] - count
g[CLAIMED] = g[CLAIMED] + count
local batch = {
  [GROUP] = group,
  [START] = g[BASE],
  [TASK_COUNT] = count,
  [ATTEMPTS] = 0,
  [CREATED] = letter[DEAD_CREATED],
  [ERROR] = letter[DEAD_ERROR],
  [LENGTH] = length,
  [MERGED] = '',
  [DEATHS] = 0,
  [READ] = count,
  [ALONE] = 0,
  [LETTER] = '',
}
hold(g, batch, now)
redis.call('HSET', batches, id, cmsgpack.pack(batch))
redis.call('ZADD', retry, now, id)
write_group(groups, group, g)
schedule(due, ready, group, g, now)
redis.call('HDEL', dead, id)
add_count(state, 'claimed', count)
add_count(state, 'bytes', length)
add_count(state, 'dead', -letter[DEAD_TASK_COUNT])
if now < read_count(state, 'wake') then wake_leader(state, channel, partition) end
return count
