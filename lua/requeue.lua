-- requeue: makes a dead letter a batch again, under the same batch id and ahead of all other tasks
-- of its group. It is merged anew, unless its merge result is kept: a part of that has been
-- enqueued, or tasks that failed alone have left.
-- A large dead letter is moved a slice per call, from its end on. In between it is what a batch is
-- that `bury` has moved in part: the group is held, and a leader buries the batch if no further
-- call comes.
--
-- KEYS   1 state  2 groups  3 batches  4 retry  5 due  6 ready  7 dead  8 tasks of the group
--        9 tasks of the dead letter  10 result of the batch
-- ARGV   1 batch id  2 wake channel  3 partition number
-- Reply  number of its tasks, also if it is a batch already; 0 if there is no such dead letter;
--        'MORE' if there is another slice; 'ORDER' if it can't go on: a leader has claimed the
--        batch in order to bury it, or another dead letter of the group was requeued meanwhile
--
-- If only some tasks of a dead letter are requeued, under a batch id of their own, `select_tasks`
-- has made two lists: of them and of the others. Then the first call takes these out of the letter,
-- which keeps its id. The argument 1 and the keys 9 and 10 are those of the new batch, and there
-- are also
-- KEYS   11 tasks of the dead letter  12 list of the selected tasks  13 list of the others
-- ARGV   4 id of the dead letter  5 SHA-1 of its record  6 bytes of the selected tasks
--        7 bytes of the others
-- Reply  as above, but 0 if the batch has left already; 'CHANGED' if the dead letter is another one
--        by now, the lists do not have all of its tasks, or its merge result is kept, which is one
--        for all of its tasks

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
-- @include slice
-- @include wake

local state, groups, batches, retry = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local due, ready, dead, tasks, dead_tasks = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local result, letter_tasks, selected, others = KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local id, channel, partition = ARGV[1], ARGV[2], ARGV[3]
local letter_id, sha, selected_bytes, other_bytes = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local takes_some = #KEYS == 13
assert_arguments(#KEYS == 10 and #ARGV >= 3 or takes_some and #ARGV >= 7)
if takes_some then
  selected_bytes, other_bytes = whole_number(selected_bytes), whole_number(other_bytes)
end
local LONGEST_PAUSE_MS = 10000  -- between two calls; then a leader buries the batch
local MOVED_BYTES = 256 * 1024  -- most of a slice, about; one task always fits
local now = clock()

local refused = refuse_schema(redis.call('HGET', state, 'schema'))
if refused then return refused end
local letter, foreign = read_dead(dead, id)
if foreign then return redis.error_reply(FOREIGN) end
local batch = not letter and read_batch(batches, id) or nil

-- Returns the records of the dead letter without the selected tasks and of one with these only; or
-- nil and a reply.
local function divide()
  local packed = redis.call('HGET', dead, letter_id)
  local rest, is_foreign = read_dead(dead, letter_id)
  if is_foreign then return nil, redis.error_reply(FOREIGN) end
  if not rest then return nil, 'CHANGED' end
  if rest[DEAD_TAKEN] == id then return nil, 0 end
  local count, chosen = redis.call('LLEN', letter_tasks), redis.call('LLEN', selected)
  local not_chosen = redis.call('LLEN', others)
  if redis.sha1hex(packed) ~= sha or rest[DEAD_RESULT] ~= '' or chosen == 0 or not_chosen == 0
    or chosen + not_chosen ~= count then
    return nil, 'CHANGED'
  end
  local taken = {}
  for place = DEAD_GROUP, DEAD_SPARE do taken[place] = rest[place] end
  taken[DEAD_TASK_COUNT], rest[DEAD_TASK_COUNT] = chosen, rest[DEAD_TASK_COUNT] - chosen
  taken[DEAD_LENGTH], rest[DEAD_LENGTH] = selected_bytes, other_bytes
  taken[DEAD_BATCH_WEIGHT] = math.floor(rest[DEAD_BATCH_WEIGHT] * chosen / count)
  rest[DEAD_BATCH_WEIGHT] = rest[DEAD_BATCH_WEIGHT] - taken[DEAD_BATCH_WEIGHT]
  taken[DEAD_TAKEN], rest[DEAD_TAKEN] = '', id
  return rest, taken
end

local rest
if takes_some and not letter and not batch then
  rest, letter = divide()
  if not rest then return letter end
end
if not letter and not batch then return 0 end
local begun = batch ~= nil
if begun then
  if batch[LETTER] == '' then return batch[TASK_COUNT] end
  local decoded
  decoded, letter = pcall(decode_dead, batch[LETTER])
  if not decoded then return redis.error_reply(FOREIGN) end
end
local group = begun and batch[GROUP] or letter[DEAD_GROUP]
local g, foreign_group = read_group(groups, group)
if foreign_group then return redis.error_reply(FOREIGN) end
if begun and not (g and is_head(g, batch) and redis.call('ZSCORE', retry, id)) then
  return 'ORDER'
end
g = g or new_group()
local stored = redis.call('LLEN', tasks)
local left = redis.call('LLEN', rest and selected or dead_tasks)
assert_type('HLEN', { batches })
assert_type('ZCARD', { retry, due, ready })

if left == 0 and not begun then  -- somebody else removed the list: there is nothing left to merge
  redis.call('HDEL', dead, id)
  redis.call('UNLINK', result)
  add_count(state, 'dead', -letter[DEAD_TASK_COUNT])
  return 0
end

batch = batch or {
  [GROUP] = group,
  [START] = 0,
  [TASK_COUNT] = 0,
  [ATTEMPTS] = 0,
  [CREATED] = letter[DEAD_CREATED],
  [ERROR] = letter[DEAD_ERROR],
  [LENGTH] = 0,
  [MERGED] = '',
  [DEATHS] = 0,
  [READ] = 0,
  [ALONE] = 0,
  [ENQUEUED] = letter[DEAD_ENQUEUED],
  [LETTER] = '',
  [RESULT] = letter[DEAD_RESULT],
  [REASON] = letter[DEAD_REASON],
  [OPENED] = letter[DEAD_OPENED],
  [DUE_AT] = letter[DEAD_DUE_AT],
  [BATCH_WEIGHT] = letter[DEAD_BATCH_WEIGHT],
  [PARTED] = letter[DEAD_PARTED],
}
local length_left = math.max(0, letter[DEAD_LENGTH] - batch[LENGTH])

if rest then  -- first: it can be refused if the memory is full
  redis.call('HSET', dead, letter_id, cmsgpack.pack(rest))
  redis.call('HSET', dead, id, cmsgpack.pack(letter))
  redis.call('PERSIST', selected)
  redis.call('PERSIST', others)
  redis.call('UNLINK', letter_tasks, dead_tasks)  -- RENAME would free them in the foreground
  redis.call('RENAME', others, letter_tasks)
  redis.call('RENAME', selected, dead_tasks)
end

-- Returns the last tasks of the dead letter, the last one first, and their bytes.
local function read_last()
  local entries, length, last = {}, 0, left
  local step = math.max(1, math.floor(STEP_BYTES * left / math.max(1, length_left)))
  while last > 0 and #entries < SLICE_TASKS and length < MOVED_BYTES do
    local first = math.max(0, last - math.min(step, SLICE_TASKS - #entries))
    local some = redis.call('LRANGE', dead_tasks, first, last - 1)
    for i = #some, 1, -1 do
      entries[#entries + 1] = some[i]
      length = length + #some[i]
    end
    last = first
  end
  return entries, length
end

local count, length = left, length_left
if stored == 0 and left > 0 then
  redis.call('RENAME', dead_tasks, tasks)
else
  local entries, read = read_last()
  call_chunked('LPUSH', tasks, entries)
  if #entries < left then
    count, length = #entries, math.min(read, length_left)
    redis.call('LTRIM', dead_tasks, 0, left - count - 1)
  else
    redis.call('UNLINK', dead_tasks)
  end
end
local done = count == left
local moved = batch[TASK_COUNT]  -- by earlier calls
batch[LETTER] = done and '' or begun and batch[LETTER] or redis.call('HGET', dead, id)
g[BASE] = g[BASE] - count
g[CLAIMED] = g[CLAIMED] + count
batch[START] = g[BASE]
batch[TASK_COUNT] = moved + count
batch[LENGTH] = batch[LENGTH] + length
batch[READ] = batch[TASK_COUNT]
if begun then
  g[HELD_FROM] = math.min(g[HELD_FROM], batch[START])
else
  hold(g, batch, now)
  redis.call('HDEL', dead, id)
end
redis.call('HSET', batches, id, cmsgpack.pack(batch))
redis.call('ZADD', retry, done and now or now + LONGEST_PAUSE_MS, id)
write_group(groups, group, g)
schedule(due, ready, group, g, now)
add_count(state, 'claimed', count)
add_count(state, 'bytes', length)
add_count(state, 'dead', done and moved - letter[DEAD_TASK_COUNT] or -count)
if not done then return 'MORE' end
if now < read_count(state, 'wake') then wake_leader(state, channel, partition) end
return batch[TASK_COUNT]
