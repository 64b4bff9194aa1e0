-- claim: cuts batches from groups that are due, and takes over batches that came back.
--
-- KEYS  1 state  2 groups  3 batches  4 claims  5 retry  6 due  7 ready  8 seen  9 seen_before
--       then for each item: tasks and ids of its group
-- ARGV  1 fencing token  2 how long the claim lasts, ms  3 partition number
--       4 at most how many batches  5 about how many tasks  6 about how many bytes at most (one
--       batch always fits)  7 ms for which a group with unreadable keys is left alone
--       8 dedupe window, ms: for so long their ids are not accepted again; 0 for none
--       then for each item: batch id or '', group key, as `poll` named them
-- Reply for each batch: { batch id, group key, attempt, first claimed at ms, last error, what it was
--       merged to or '', { entry, entry, ... } }; for an item whose keys hold a foreign type or
--       record: { '', group key, 0, 0, error, '', {} }
--
-- The tasks stay in the list of their group: a claim only records which of them a batch holds.

-- @include clock
-- @include schema
-- @include fence
-- @include expect
-- @include record
-- @include counts
-- @include group
-- @include each
-- @include entry
-- @include batch
-- @include seen

local state, groups, batches = KEYS[1], KEYS[2], KEYS[3]
local claims, retry, due, ready = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local seen, seen_before = KEYS[8], KEYS[9]
local ITEM_KEYS, ITEM_ARGS = 10, 9  -- where the first item begins
local now = clock()
local stale = fence(state, ARGV[1], now)
if stale then return stale end
expect('HLEN', { batches })
expect('ZCARD', { claims, retry, due, ready })
local paused = redis.call('HEXISTS', state, 'paused') == 1
local until_ms = now + tonumber(ARGV[2])
local partition = ARGV[3]
local batches_left, tasks_left, bytes_left = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local leave_ms, window_ms = tonumber(ARGV[7]), tonumber(ARGV[8])
local BEHIND_MS = 50  -- how soon a batch is looked at again that has to let others go first
if window_ms > 0 then expect('SCARD', { seen, seen_before }) end
local reply, records, deadlines, flushed = {}, {}, {}, {}
local taken, claimed = 0, 0  -- tasks that left `waiting`, and tasks that batches now hold
local lost_bytes = 0

-- A batch id sorts by time and is never given twice: the counter grows, and should Redis lose
-- it, the clock has gone on.
local sequence = read_count(state, 'sequence')
local function new_batch_id()
  sequence = sequence + 1
  return string.format('%012x-%s-%08x', now, partition, sequence)
end

local function hand_out(id, batch, entries)
  batch[ATTEMPTS] = batch[ATTEMPTS] + 1
  records[#records + 1] = id
  records[#records + 1] = cmsgpack.pack(batch)
  deadlines[#deadlines + 1] = until_ms
  deadlines[#deadlines + 1] = id
  reply[#reply + 1] = {
    id, batch[GROUP], batch[ATTEMPTS], batch[CREATED], batch[ERROR], batch[MERGED], entries,
  }
  batches_left = batches_left - 1
  tasks_left = tasks_left - batch[COUNT]
  bytes_left = bytes_left - batch[LENGTH] - #batch[MERGED]
end

local function has_room() return batches_left > 0 and tasks_left > 0 and bytes_left > 0 end

local function leave_alone(group, error)
  redis.call('ZREM', ready, group)
  redis.call('ZADD', due, now + leave_ms, group)
  reply[#reply + 1] = { '', group, 0, 0, error, '', {} }
end

-- Has `remember` keep the ids of entries that are cut.
local function note_flushed(group, entries)
  if window_ms == 0 then return end
  for _, entry in ipairs(entries) do
    flushed[#flushed + 1] = seen_member(group, entry_id(entry))
  end
end

local function remember()
  if #flushed == 0 then return end
  local left = redis.call('PTTL', seen)
  if left < window_ms then  -- it is a window old, or there is none
    if left ~= -2 then
      redis.call('UNLINK', seen_before)
      redis.call('RENAME', seen, seen_before)
    end
    left = 2 * window_ms
  end
  each('SADD', seen, flushed)
  redis.call('PEXPIRE', seen, left)
end

-- Cuts as many batches from one group as are due and as there is room for.
local function cut(group, tasks, ids)
  if paused or not has_room() or not redis.call('ZSCORE', ready, group) then return end
  local g, foreign = read_group(groups, group)
  if foreign then return leave_alone(group, FOREIGN) end
  if not g or g[HELD] > 0 or g[WAITING] == 0 then
    redis.call('ZREM', ready, group)
    return
  end
  -- A group in `ready` was due when it got there, and stays due, so one batch is cut always.
  local first = true
  while g[WAITING] > 0 and has_room() and (first or due_at(g) <= now) do
    first = false
    local count = math.min(g[WAITING], g[SIZE])
    local entries = redis.pcall('LRANGE', tasks, g[CLAIMED], g[CLAIMED] + count - 1)
    if entries.err then return leave_alone(group, entries.err) end
    if #entries == 0 then  -- the list was removed by a foreign hand: nothing is left to keep
      taken, lost_bytes = taken + g[WAITING], lost_bytes + g[BYTES]
      g[WAITING], g[BYTES] = 0, 0
      break
    end
    local length = total_bytes(entries)
    local batch = { group, g[BASE] + g[CLAIMED], #entries, 0, now, '', length, '' }
    note_flushed(group, entries)
    if #entries == g[WAITING] then
      redis.call('UNLINK', ids)
    else
      forget_ids(ids, entries)
    end
    g[WAITING] = g[WAITING] - #entries
    g[CLAIMED] = g[CLAIMED] + #entries
    g[BYTES] = math.max(0, g[BYTES] - length)
    g[FLUSH] = math.max(0, g[FLUSH] - #entries)
    refresh_head(tasks, g)
    taken, claimed = taken + #entries, claimed + #entries
    hand_out(new_batch_id(), batch, entries)
  end
  write_group(groups, group, g)
  schedule(due, ready, group, g, now)
end

-- Takes a batch whose claim ran out or whose retry is due.
local function take_over(id, group, tasks)
  if not has_room() then return end
  local batch = read_batch(batches, id)
  local g, foreign = read_group(groups, group)
  if not batch or not g and not foreign then
    redis.call('ZREM', claims, id)
    redis.call('ZREM', retry, id)
    return
  end
  local waits = redis.call('ZSCORE', retry, id)
  local at = waits or redis.call('ZSCORE', claims, id)
  if not at or tonumber(at) > now or (paused and waits) then return end
  local entries = { err = FOREIGN }
  if g then
    -- It may be due before one that has been put back once more, and must not overtake it.
    if is_behind_held(g, batch) then
      redis.call('ZADD', waits and retry or claims, math.max(g[UNTIL], now + BEHIND_MS), id)
      return
    end
    local from = batch[START] - g[BASE]
    entries = redis.pcall('LRANGE', tasks, from, from + batch[COUNT] - 1)
  end
  if entries.err then
    redis.call('ZADD', waits and retry or claims, now + leave_ms, id)
    reply[#reply + 1] = { '', group, 0, 0, entries.err, '', {} }
    return
  end
  if waits then
    redis.call('ZREM', retry, id)
    let_go(g, batch)
    write_group(groups, group, g)
    schedule(due, ready, group, g, now)
  end
  hand_out(id, batch, entries)
end

for item = 0, (#KEYS - ITEM_KEYS) / 2 do
  local id, group = ARGV[ITEM_ARGS + 2 * item], ARGV[ITEM_ARGS + 1 + 2 * item]
  local tasks, ids = KEYS[ITEM_KEYS + 2 * item], KEYS[ITEM_KEYS + 1 + 2 * item]
  if id == '' then cut(group, tasks, ids) else take_over(id, group, tasks) end
end
if #records > 0 then
  each('HSET', batches, records)
  each('ZADD', claims, deadlines)
end
if taken > 0 then
  redis.call('HSET', state, 'sequence', sequence)
  add_count(state, 'waiting', -taken)
  add_count(state, 'claimed', claimed)
  if lost_bytes > 0 then add_count(state, 'bytes', -lost_bytes) end
  remember()
end
return reply
