-- A batch in flight: the record in the hash `batches`, a msgpack array with these places. Its
-- tasks stay where they are, at the head of their group's list, so that a claim copies nothing.
local GROUP    = 1   -- the group key
local START    = 2   -- absolute number of its first task
local COUNT    = 3   -- how many tasks it holds
local ATTEMPTS = 4   -- how often it has been claimed to be merged or, since it is, to be enqueued
local CREATED  = 5   -- when it was claimed first, ms
local ERROR    = 6   -- why the last attempt failed, or ''
local LENGTH   = 7   -- bytes of its entries
local MERGED   = 8   -- what the merge returned, as the flusher packed it, or '' until it has

-- The record, or nil if there is none or foreign bytes are in its place.
local function read_batch(batches, id)
  local batch = read_record(batches, id, MERGED)
  if batch and type(batch[GROUP]) == 'string' and type(batch[MERGED]) == 'string' then
    return batch
  end
end

-- Batches of one group leave in the order of their tasks, so only the batch at the head may.
local function is_head(g, batch) return batch[START] == g[BASE] end

-- Marks the group of a batch that waits for a retry.
local function hold(g, batch, until_ms)
  if g[HELD] == 0 or batch[START] < g[HELD_AT] then g[HELD_AT] = batch[START] end
  g[HELD] = g[HELD] + 1
  g[UNTIL] = math.max(g[UNTIL], until_ms)
end

-- The opposite. What is next in the group is held too, or one before it will be, or it leaves.
local function let_go(g, batch)
  g[HELD] = math.max(0, g[HELD] - 1)
  g[HELD_AT] = batch[START] + batch[COUNT]
end

-- Whether one before it in its group waits for a retry.
local function is_behind_held(g, batch)
  return g[HELD] > 0 and batch[START] > g[HELD_AT] and not is_head(g, batch)
end

-- Forgets a batch that is at the head of its group; the caller has dealt with its tasks in the
-- list and writes the group's record.
local function close_batch(batches, claims, id, batch, g)
  redis.call('HDEL', batches, id)
  redis.call('ZREM', claims, id)
  g[BASE] = g[BASE] + batch[COUNT]
  g[CLAIMED] = g[CLAIMED] - batch[COUNT]
end

-- Takes the batch's tasks off the head of the list. A foreign type in its place stays as it is;
-- that the leader may trim lists at all has been seen to when it got its lease.
local function trim_batch(tasks, batch, g)
  if batch[COUNT] == g[WAITING] + g[CLAIMED] then
    redis.pcall('LTRIM', tasks, 1, 0)  -- the whole list, and so the key
  else
    redis.pcall('LTRIM', tasks, batch[COUNT], -1)
  end
end
