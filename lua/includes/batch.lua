-- @include group
-- @include record

-- A batch in flight: the record in the hash `batches`, a msgpack array with these places. Its tasks
-- stay at the head of their group's list, so that a claim copies nothing.
local GROUP      = 1   -- the group key
local START      = 2   -- absolute number of its first task
local TASK_COUNT = 3   -- number of its tasks
local ATTEMPTS   = 4   -- number of attempts that failed: to merge it or, since it is merged, to
                       -- enqueue it
local CREATED    = 5   -- when it was first claimed, ms
local ERROR      = 6   -- error text of the last failed attempt, or ''
local LENGTH     = 7   -- bytes of its entries
local MERGED     = 8   -- the serialized merge result, or '' if none is stored
local DEATHS     = 9   -- number of leaders in a row that held the batch and vanished
local READ       = 10  -- number of its first tasks whose ids have been taken off the waiting ids
local ALONE      = 11  -- 1 if it was claimed as a suspect, so that it is blamed for a death
local ENQUEUED   = 12  -- number of merged tasks that slices of a commit have enqueued
local LETTER     = 13  -- the packed record of the dead letter that it becomes (includes/dead.lua),
                       -- while `bury` moves its tasks there in slices; else ''
local RESULT     = 14  -- the label of the merge result in `result:BATCH` (includes/result.lua);
                       -- '' if there is no such key
local REASON     = 15  -- why it was due: 'size', 'bytes', 'weight', 'grace', 'max_delay', 'due_at',
                       -- 'schedule', 'leading' or 'flush'
local OPENED     = 16  -- arrival of its first task, ms
local DUE_AT     = 17  -- when it was due, ms
local BATCH_WEIGHT = 18  -- weight of its tasks
local PARTED     = 19  -- number of its tasks that failed alone and have left, as a text; '' for 0

local BATCH_HEADER = '\220\0\19'  -- an array of PARTED places
local function decode_batch(packed)
  local batch = unpack_record(packed, BATCH_HEADER, PARTED)
  assert_whole(batch, START, CREATED)
  assert_whole(batch, LENGTH, LENGTH)
  assert_whole(batch, DEATHS, ENQUEUED)
  assert_whole(batch, OPENED, BATCH_WEIGHT)
  if type(batch[GROUP]) == 'string' and type(batch[ERROR]) == 'string'
    and type(batch[MERGED]) == 'string' and type(batch[LETTER]) == 'string'
    and type(batch[RESULT]) == 'string' and type(batch[REASON]) == 'string'
    and type(batch[PARTED]) == 'string' then
    return batch
  end
  error('foreign bytes')
end

-- Returns the record; nil if there is none; nil and true for foreign bytes.
local function read_batch(batches, id) return read_record(batches, id, decode_batch) end

-- Whether the batch may leave: batches of a group leave in the order of their tasks.
local function is_head(g, batch) return batch[START] == g[BASE] end

-- Place of the first task of a batch, from 0, whose id may still be among the waiting ids.
local function first_known(g, batch) return math.max(batch[READ], g[IDS_FROM] - batch[START]) end

-- Marks the group of a batch that is put into `retry` or `suspects`.
local function hold(g, batch, until_ms)
  if g[HELD] == 0 or batch[START] < g[HELD_FROM] then g[HELD_FROM] = batch[START] end
  g[HELD] = g[HELD] + 1
  g[HELD_UNTIL] = math.max(g[HELD_UNTIL], until_ms)
end

-- Reverses `hold` for a batch that is taken out again. HELD_FROM moves behind the batch: the next
-- batch in `retry` or `suspects` starts there or later.
local function release_hold(g, batch)
  g[HELD] = math.max(0, g[HELD] - 1)
  g[HELD_FROM] = batch[START] + batch[TASK_COUNT]
end

-- Puts a claimed batch into `retry`: it can be claimed again at this time, and holds its group
-- until then. `g`: the record of the group, nil if it is gone or foreign.
local function hold_in_retry(indexes, id, batch, g, until_ms, now)
  redis.call('ZREM', indexes.claims, id)
  redis.call('ZADD', indexes.retry, until_ms, id)
  if not g then return end
  hold(g, batch, until_ms)
  write_group(indexes.groups, batch[GROUP], g)
  schedule(indexes.due, indexes.ready, batch[GROUP], g, now)
end

-- The score in `suspects`: batches that saw the fewest leaders vanish come first, then the oldest.
local function suspect_score(batch, now)
  return string.format('%.0f', now + batch[DEATHS] * PRIORITY_STEP)
end

-- Whether an earlier batch of the group is in `retry` or `suspects`.
local function is_behind_held(g, batch)
  return g[HELD] > 0 and batch[START] > g[HELD_FROM] and not is_head(g, batch)
end

-- Takes a batch at the head of its group out of the group. The caller removes the record and the
-- claim of the batch, takes its tasks off the list and writes the group's record.
local function leave_group(g, batch)
  g[BASE] = g[BASE] + batch[TASK_COUNT]
  g[CLAIMED] = g[CLAIMED] - batch[TASK_COUNT]
end

-- Takes the first tasks of a batch at the head of its group out of the batch. The caller takes them
-- off the list and writes the group's record. `length`: their bytes.
local function shorten_batch(batches, id, batch, g, count, length)
  batch[START] = batch[START] + count
  batch[TASK_COUNT] = batch[TASK_COUNT] - count
  batch[LENGTH] = batch[LENGTH] - length
  batch[READ] = math.max(0, batch[READ] - count)
  redis.call('HSET', batches, id, cmsgpack.pack(batch))
  g[BASE] = g[BASE] + count
  g[CLAIMED] = g[CLAIMED] - count
end
