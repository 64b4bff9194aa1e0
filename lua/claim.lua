-- claim: cuts batches from groups that are due, and takes over batches that came back.
--
-- KEYS   1 state  2 groups  3 batches  4 claims  5 retry  6 due  7 ready  8 seen  9 seen_before
--        then for each item: tasks and ids of its group
-- ARGV   1 fencing token  2 duration of the claim, ms  3 partition number
--        4 maximum number of batches
--        5 approximate maximum number of tasks  6 approximate maximum bytes (one batch always fits)
--        7 quarantine of a group or batch whose keys hold a foreign type or record, ms
--        8 dedupe window, ms: how long ids of flushed tasks are not accepted again; 0 for none
--        then for each item, as `poll` named it: batch id or '', group key
-- Reply  for each batch: { batch id, group key, attempt, first claimed at (ms), last error,
--        serialized merge result or '', { entry, entry, ... } };
--        for an item in quarantine: { '', group key, 0, 0, error, '', {} }
--
-- The tasks stay in the list of their group. A claim only records which of them a batch holds.

-- @include arguments
-- @include assert_type
-- @include batch
-- @include call_chunked
-- @include clock
-- @include counts
-- @include entry
-- @include fence
-- @include group
-- @include record
-- @include seen
-- @include waiting

local state, groups, batches = KEYS[1], KEYS[2], KEYS[3]
local claims, retry, due, ready = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local seen, seen_before = KEYS[8], KEYS[9]
local token, claim_ms, partition = ARGV[1], whole_number(ARGV[2]), ARGV[3]
local batches_left, tasks_left = whole_number(ARGV[4]), whole_number(ARGV[5])
local bytes_left, quarantine_ms = whole_number(ARGV[6]), whole_number(ARGV[7])
local window_ms = whole_number(ARGV[8])
local FIRST_KEY, FIRST_ARG = 10, 9  -- of the first item
assert_arguments(#KEYS - FIRST_KEY == #ARGV - FIRST_ARG and (#KEYS - FIRST_KEY) % 2 == 1)
local BEHIND_MS = 50  -- when a batch is tried again that an earlier batch of its group holds back
local now = clock()
local stale = fence(state, token, now)
if stale then return stale end
assert_type('HLEN', { batches })
assert_type('ZCARD', { claims, retry, due, ready })
if window_ms > 0 then assert_type('SCARD', { seen, seen_before }) end

local paused = redis.call('HEXISTS', state, 'paused') == 1
local claimed_until = now + claim_ms
local reply, records, deadlines, flushed = {}, {}, {}, {}
local taken, claimed = 0, 0  -- tasks that left `waiting`, and tasks that batches now hold
local lost_bytes = 0  -- of tasks whose list is gone

-- A batch id sorts by time and is never given twice: if Redis loses the sequence, the time differs.
local sequence = read_count(state, 'sequence')
local function new_batch_id()
  sequence = sequence + 1
  return string.format('%012x-%s-%08x', now, partition, sequence)
end

local function has_room() return batches_left > 0 and tasks_left > 0 and bytes_left > 0 end

-- Claims a batch and puts it into the reply.
local function hand_out(id, batch, entries)
  batch[ATTEMPTS] = batch[ATTEMPTS] + 1
  records[#records + 1] = id
  records[#records + 1] = cmsgpack.pack(batch)
  deadlines[#deadlines + 1] = claimed_until
  deadlines[#deadlines + 1] = id
  reply[#reply + 1] = {
    id, batch[GROUP], batch[ATTEMPTS], batch[CREATED], batch[ERROR], batch[MERGED], entries,
  }
  batches_left = batches_left - 1
  tasks_left = tasks_left - batch[TASK_COUNT]
  bytes_left = bytes_left - batch[LENGTH] - #batch[MERGED]
end

local function report_quarantine(group, error)
  reply[#reply + 1] = { '', group, 0, 0, error, '', {} }
end

local function quarantine_group(group, error)
  redis.call('ZREM', ready, group)
  redis.call('ZADD', due, now + quarantine_ms, group)
  report_quarantine(group, error)
end

-- Collects the ids of entries that are cut for `store_seen`.
local function collect_seen(group, entries)
  if window_ms == 0 then return end
  for i = 1, #entries do
    flushed[#flushed + 1] = seen_member(group, entry_id(entries[i]))
  end
end

local function store_seen()
  if #flushed == 0 then return end
  local NO_KEY = -2
  local expires_in = redis.call('PTTL', seen)
  if expires_in < window_ms then  -- the set is a window old, or there is none
    if expires_in ~= NO_KEY then
      redis.call('UNLINK', seen_before)
      redis.call('RENAME', seen, seen_before)
    end
    expires_in = 2 * window_ms
  end
  call_chunked('SADD', seen, flushed)
  redis.call('PEXPIRE', seen, expires_in)
end

-- Cuts all batches of one group that are due and for which there is room.
local function cut(group, tasks, ids)
  if paused or not has_room() or not redis.call('ZSCORE', ready, group) then return end
  local g, foreign = read_group(groups, group)
  if foreign then return quarantine_group(group, FOREIGN) end
  if not g or g[HELD] > 0 or g[WAITING] == 0 then
    redis.call('ZREM', ready, group)
    return
  end
  -- A group in `ready` was due when it got there, and stays due: the first batch is always cut.
  local first = true
  while g[WAITING] > 0 and has_room() and (first or due_at(g) <= now) do
    first = false
    local count = math.min(g[WAITING], g[SIZE])
    local entries = redis.pcall('LRANGE', tasks, g[CLAIMED], g[CLAIMED] + count - 1)
    if entries.err then return quarantine_group(group, entries.err) end
    if #entries == 0 then  -- somebody else removed the list: there is nothing left to keep
      taken, lost_bytes = taken + g[WAITING], lost_bytes + g[BYTES]
      g[WAITING], g[BYTES] = 0, 0
      break
    end
    local length = total_bytes(entries)
    -- A positional table, in the order of the places in includes/batch.lua, costs the least.
    local batch = { group, g[BASE] + g[CLAIMED], #entries, 0, now, '', length, '' }
    collect_seen(group, entries)
    if #entries == g[WAITING] then
      redis.call('UNLINK', ids)
    else
      remove_ids(ids, entries)
    end
    g[WAITING] = g[WAITING] - #entries
    g[CLAIMED] = g[CLAIMED] + #entries
    g[BYTES] = math.max(0, g[BYTES] - length)
    g[MARKED] = math.max(0, g[MARKED] - #entries)
    refresh_head(tasks, g)
    taken, claimed = taken + #entries, claimed + #entries
    hand_out(new_batch_id(), batch, entries)
  end
  write_group(groups, group, g)
  schedule(due, ready, group, g, now)
end

-- Claims a batch whose earlier claim ran out or whose retry is due.
local function take_over(id, group, tasks)
  if not has_room() then return end
  local batch = read_batch(batches, id)
  local g, foreign = read_group(groups, group)
  if not batch or not g and not foreign then
    redis.call('ZREM', claims, id)
    redis.call('ZREM', retry, id)
    return
  end
  local retry_at = redis.call('ZSCORE', retry, id)
  local free_at = retry_at or redis.call('ZSCORE', claims, id)
  if not free_at or tonumber(free_at) > now or (paused and retry_at) then return end
  local index = retry_at and retry or claims
  local entries = { err = FOREIGN }
  if g then
    -- An earlier batch of the group may have failed again and be due later than this one. The order
    -- of the group has to be kept.
    if is_behind_held(g, batch) then
      redis.call('ZADD', index, math.max(g[HELD_UNTIL], now + BEHIND_MS), id)
      return
    end
    local from = batch[START] - g[BASE]
    entries = redis.pcall('LRANGE', tasks, from, from + batch[TASK_COUNT] - 1)
  end
  if entries.err then
    redis.call('ZADD', index, now + quarantine_ms, id)
    return report_quarantine(group, entries.err)
  end
  if retry_at then
    redis.call('ZREM', retry, id)
    release_hold(g, batch)
    write_group(groups, group, g)
    schedule(due, ready, group, g, now)
  end
  hand_out(id, batch, entries)
end

local at = FIRST_ARG
for key = FIRST_KEY, #KEYS, 2 do
  local id, group, tasks, ids = ARGV[at], ARGV[at + 1], KEYS[key], KEYS[key + 1]
  if id == '' then cut(group, tasks, ids) else take_over(id, group, tasks) end
  at = at + 2
end
if #records > 0 then
  call_chunked('HSET', batches, records)
  call_chunked('ZADD', claims, deadlines)
end
if taken > 0 then
  redis.call('HSET', state, 'sequence', sequence)
  add_count(state, 'waiting', -taken)
  add_count(state, 'claimed', claimed)
  if lost_bytes > 0 then add_count(state, 'bytes', -lost_bytes) end
  store_seen()
end
return reply
