-- claim: cuts batches from groups that are due, and takes over batches that came back.
--
-- KEYS   1 state  2 groups  3 batches  4 claims  5 retry  6 suspects  7 due  8 ready  9 seen
--        10 seen_before
--        then for each item: tasks and ids of its group
-- ARGV   1 fencing token  2 duration of the claim, ms  3 partition number
--        4 maximum number of batches
--        5 approximate maximum number of tasks  6 approximate maximum bytes (one batch always fits)
--        7 quarantine of a group or batch whose keys hold a foreign type or record, ms
--        8 dedupe window, ms: how long ids of flushed tasks are not accepted again; 0 for none
--        then for each item, as `poll` named it: batch id or '', group key
--        and 'cause' if the reply is to say more about why each batch was due
-- Reply  for each batch: { batch id, group key, number of this attempt, last error, serialized
--        merge result or '', { entry, entry, ... }, number of tasks, bytes of their entries, 1 if
--        it is a suspect, else 0, REASON of the record (includes/batch.lua) }; without entries if
--        it has a merge result, or if it is large: then `read_tasks` returns them. If its merge
--        result is in `result:BATCH` there are two more: the label (includes/result.lua), and how
--        many merged tasks have been enqueued. With 'cause' there are always these and then OPENED,
--        DUE_AT, BATCH_WEIGHT, CREATED of the record;
--        for an item in quarantine: { '', group key, 0, error, '', {}, 0, 0, 0, '' }
--
-- Batches that came back are claimed first, whatever the order of the items. The groups take turns:
-- each gives a few batches before one gives the next. The tasks stay in the list of their group. A
-- claim only records which of them a batch holds.

-- @include arguments
-- @include assert_type
-- @include batch
-- @include call_chunked
-- @include clock
-- @include counts
-- @include entry
-- @include fence
-- @include group
-- @include many
-- @include number_text
-- @include record
-- @include result
-- @include rules
-- @include seen
-- @include seen_sets
-- @include segments
-- @include slice
-- @include waiting

local state, groups, batches = KEYS[1], KEYS[2], KEYS[3]
local claims, retry, suspects, due, ready = KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local seen, seen_before = KEYS[9], KEYS[10]
local INDEXES = { groups = groups, claims = claims, retry = retry, due = due, ready = ready }
local token, claim_ms, partition = ARGV[1], whole_number(ARGV[2]), ARGV[3]
local batches_left, tasks_left = whole_number(ARGV[4]), whole_number(ARGV[5])
local bytes_left, quarantine_ms = whole_number(ARGV[6]), whole_number(ARGV[7])
local window_ms = whole_number(ARGV[8])
local FIRST_KEY, FIRST_ARG = 11, 9  -- of the first item
local with_cause = #ARGV - FIRST_ARG == #KEYS - FIRST_KEY + 1 and ARGV[#ARGV] == 'cause'
assert_arguments((with_cause or #KEYS - FIRST_KEY == #ARGV - FIRST_ARG)
  and (#KEYS - FIRST_KEY) % 2 == 1)
local TURN = 8  -- batches of a group in one turn
local GROUPS_READ = 16  -- groups whose records are read at once
local BEHIND_MS = 50  -- when a batch is tried again that an earlier batch of its group holds back
local PAUSED_MS = 2000  -- when it is looked at again because its group is paused
local now = clock()
local stale = fence(state, token, now)
if stale then return stale end
assert_type('HLEN', { groups, batches })
assert_type('ZCARD', { claims, retry, suspects, due, ready })
if window_ms > 0 then assert_type('SCARD', { seen, seen_before }) end

local paused = redis.call('HEXISTS', state, 'paused') == 1
local claimed_until = number_text(now + claim_ms)
local reply, records, deadlines, flushed = {}, {}, {}, {}
local sources = {}  -- the groups from which more batches can be cut
local emptied = {}  -- the ids of groups that were cut as a whole, to be removed behind all cuts
local changed = {}  -- the records of groups that were cut, to be written behind all cuts
local handed_out = 0  -- batches
local taken, claimed = 0, 0  -- tasks that left `waiting`, and tasks that batches now hold
local lost_bytes = 0  -- of tasks whose list is gone

-- A batch id sorts by time and is never given twice: if Redis loses the sequence, the time differs.
local sequence = read_count(state, 'sequence')
local id_prefix = string.format('%012x-%s-', now, partition)
local function new_batch_id()
  sequence = sequence + 1
  return id_prefix .. string.format('%08x', sequence)
end

-- What the arguments say of an item, named by the place of its first key.
local function id_of(key) return ARGV[FIRST_ARG + key - FIRST_KEY] end
local function group_of(key) return ARGV[FIRST_ARG + 1 + key - FIRST_KEY] end

local MOST_READ = 1200  -- tasks and summaries that one call looks at in groups with segments, about

local function has_room()
  return batches_left > 0 and tasks_left > 0 and bytes_left > 0
    and segments.entries_read < MOST_READ
end

-- An attempt beyond every maximum: the rest of a batch that was half buried is buried too.
local TO_BURY = 2^31

-- Claims a batch and puts it into the reply.
local function hand_out(id, batch, entries, suspect)
  batch[ALONE] = suspect
  handed_out = handed_out + 1
  local last_of_pair = 2 * handed_out
  records[last_of_pair - 1], records[last_of_pair] = id, cmsgpack.pack(batch)
  deadlines[last_of_pair - 1], deadlines[last_of_pair] = claimed_until, id
  local count, length, merged = batch[TASK_COUNT], batch[LENGTH], batch[MERGED]
  local attempt = batch[LETTER] == '' and batch[ATTEMPTS] + 1 or TO_BURY
  -- Never buried for its attempts: some of its tasks have left.
  if batch[PARTED] ~= '' and batch[LETTER] == '' then attempt = 1 end
  reply[#reply + 1] = {
    id, batch[GROUP], attempt, batch[ERROR], merged, entries, count, length, suspect,
    batch[REASON],
  }
  if batch[RESULT] ~= '' or with_cause then
    local last = reply[#reply]
    last[#last + 1], last[#last + 2] = batch[RESULT], batch[ENQUEUED]
    if with_cause then
      for place = OPENED, BATCH_WEIGHT do last[#last + 1] = batch[place] end
      last[#last + 1] = batch[CREATED]
    end
  end
  batches_left = batches_left - 1
  if #entries > 0 then
    tasks_left = tasks_left - count
    bytes_left = bytes_left - length
  end
  bytes_left = bytes_left - #merged
end

local function report_quarantine(group, error)
  reply[#reply + 1] = { '', group, 0, error, '', {}, 0, 0, 0, '' }
end

local function quarantine_group(group, error)
  redis.call('ZREM', ready, group)
  redis.call('ZADD', due, now + quarantine_ms, group)
  report_quarantine(group, error)
end

-- Collects the ids of entries that are cut for `remember_seen`.
local function collect_seen(group, entries)
  for i = 1, #entries do
    flushed[#flushed + 1] = seen_member(group, entry_id(entries[i]))
  end
end

-- Returns the number, the bytes and the weight of the tasks that a cut takes, and the segments of
-- the others. The bytes are estimated unless all are taken, or the group has segments.
local function choose(g, tasks)
  local rules = g[RULES]
  if rules ~= 0 and rules[SEGMENTS] ~= '' then
    local stored = redis.pcall('LLEN', tasks)
    if type(stored) == 'table' then return stored end
    use_segments()
    return segments.cut(g, tasks, now)
  end
  local count = math.min(g[WAITING], g[SIZE])
  local length = count == g[WAITING] and g[BYTES] or math.floor(g[BYTES] / g[WAITING] * count)
  return count, length, count, nil
end

-- Reads the tasks that a cut takes: returns their number, their bytes and their entries. There are
-- no entries if they are too many for this reply, and then the bytes are those that were estimated.
-- The bytes of all waiting tasks are known.
local function read_waiting(g, tasks, count, length)
  if is_large(count, length) then
    local stored = redis.pcall('LLEN', tasks)
    if type(stored) == 'table' then return 0, 0, stored end
    return math.max(0, math.min(count, stored - g[CLAIMED])), length, {}
  end
  local from, to = number_text(g[CLAIMED]), number_text(g[CLAIMED] + count - 1)
  local entries = redis.pcall('LRANGE', tasks, from, to)
  if entries.err then return 0, 0, entries end
  if #entries == g[WAITING] then return #entries, g[BYTES], entries end
  return #entries, total_bytes(entries), entries
end

-- Cuts one batch. Returns whether another one can be cut from the group, which the caller writes;
-- nil if the group is in quarantine.
local function cut(group, g, tasks, ids)
  local reason, due_since = reason_of(g, now)
  local chosen, counted, weight, left = choose(g, tasks)
  if not counted then return quarantine_group(group, chosen.err) end
  local count, length, entries = read_waiting(g, tasks, chosen, counted)
  if entries.err then return quarantine_group(group, entries.err) end
  if left then length = counted end
  if count == 0 then  -- somebody else removed the list: there is nothing left to keep
    emptied[#emptied + 1] = ids
    taken, lost_bytes = taken + g[WAITING], lost_bytes + g[BYTES]
    g[WAITING], g[BYTES] = 0, 0
    no_task_waits(g)
    return false
  end
  local whole, read = count == g[WAITING], #entries
  if window_ms > 0 then collect_seen(group, entries) end
  if whole then length = g[BYTES] end
  -- The ids of a large batch stay until `read_tasks` has put them among those that were flushed
  -- lately. Those of an earlier batch may still be there.
  if whole and g[CLAIMED] == 0 and (read > 0 or window_ms == 0) then
    emptied[#emptied + 1] = ids
    read = count
  else
    remove_ids(ids, entries)
  end
  -- The bytes of a large batch are estimated, so less may be left than these entries have.
  length = math.min(length, g[BYTES])
  -- A positional table, in the order of the places in includes/batch.lua, costs the least.
  local batch = {
    group, g[BASE] + g[CLAIMED], count, 0, now, '', length, '', 0, read, 0, 0, '', '', reason,
    g[FIRST], due_since, weight, '',
  }
  g[WAITING] = g[WAITING] - count
  g[CLAIMED] = g[CLAIMED] + count
  g[BYTES] = g[BYTES] - length
  if g[MARKED] > 0 then g[MARKED] = math.max(0, g[MARKED] - count) end
  g[SINCE] = now
  if g[RULES] ~= 0 then
    g[RULES][POSTPONED] = 0
    if g[RULES][INTERVAL] > 0 then g[RULES][COOL_UNTIL] = now + g[RULES][INTERVAL] end
  end
  refresh_head(tasks, g, left, now)
  taken, claimed = taken + count, claimed + count
  hand_out(new_batch_id(), batch, entries, 0)
  return g[WAITING] > 0 and due_at(g) <= now
end

-- Cuts the batches of one turn; returns as `cut`.
local function cut_turn(group, g, tasks, ids)
  local more = cut(group, g, tasks, ids)
  for _ = 2, TURN do
    if not more or not has_room() then break end
    more = cut(group, g, tasks, ids)
  end
  return more
end

-- Cuts the first batches of a group that is due, and notes if more can be cut from it. `g`: its
-- record, or nil.
local function cut_first(group, g, tasks, ids)
  if not g or g[HELD] > 0 or g[WAITING] == 0 or g[RULES] ~= 0 and is_paused(g) then
    redis.call('ZREM', ready, group)
    return
  end
  -- A group in `ready` was due when it got there, and stays due: the first batch is always cut,
  -- unless a task or an operator has asked for a later time since.
  if held_back_until(g) > now then
    schedule(due, ready, group, g, now)
    return
  end
  local more = cut_turn(group, g, tasks, ids)
  if more == nil then return end
  changed[group] = g
  if more and has_room() then
    sources[#sources + 1] = { group = group, g = g, tasks = tasks, ids = ids }
  end
end

-- Cuts the first batches of the groups of these items, named by their first keys. What is known of
-- the groups is read of a few at a time: often the first ones fill the reply.
local function cut_first_of_each(items)
  for first = 1, #items, GROUPS_READ do
    if not has_room() then return end
    local last, names = math.min(first + GROUPS_READ - 1, #items), {}
    for i = first, last do names[i - first + 1] = group_of(items[i]) end
    local is_ready = read_scores(ready, names)
    local group_records, is_foreign = read_records(groups, names, decode_group)
    for i, group in ipairs(names) do
      local key = items[first + i - 1]
      if is_ready[i] and not changed[group] and has_room() then
        if is_foreign[group] then
          quarantine_group(group, FOREIGN)
        else
          cut_first(group, group_records[group], KEYS[key], KEYS[key + 1])
        end
      end
    end
  end
end

-- Cuts the further batches of the sources, in turns.
local function cut_in_turns()
  while #sources > 0 do
    local left = {}
    for _, from in ipairs(sources) do
      local more = has_room() and cut_turn(from.group, from.g, from.tasks, from.ids)
      if more and has_room() then left[#left + 1] = from end
    end
    sources = left
  end
end

-- Whether an operator has paused the group of a batch. A batch of tasks that failed alone is in a
-- group of its own, whose key ends with that of the tasks: redisagg/protocol/failed_tasks.py.
local function is_stopped(g, group)
  local of_tasks = string.match(group, '^\255[^\255]*\255(.*)$')
  local named = of_tasks and read_group(groups, of_tasks)
  return is_paused(g) or named and is_paused(named)
end

-- Claims a batch that was freed, whose claim ran out, whose retry is due, or that is a suspect.
-- `g`: the record of its group, or nil.
local function take_over(id, group, g, is_foreign, tasks)
  if not has_room() then return end
  local batch = read_batch(batches, id)
  if not batch or not g and not is_foreign then
    redis.call('ZREM', claims, id)
    redis.call('ZREM', retry, id)
    redis.call('ZREM', suspects, id)
    return
  end
  local index, suspect = claims, 0
  local free_at = redis.call('ZSCORE', claims, id)
  if not free_at then
    index, free_at = retry, redis.call('ZSCORE', retry, id)
  end
  if not free_at and redis.call('ZSCORE', suspects, id) then
    index, free_at, suspect = suspects, 0, 1
  end
  local held = index ~= claims
  if not free_at or tonumber(free_at) > now or (paused and held) then return end
  local function postpone(until_ms)
    if index == suspects then  -- behind all others
      local _, last = unpack(redis.call('ZRANGE', suspects, -1, -1, 'WITHSCORES'))
      until_ms = tonumber(last) + 1
    end
    redis.call('ZADD', index, string.format('%.0f', until_ms), id)
  end
  local entries = { err = FOREIGN }
  if g then
    if held and is_stopped(g, group) then return postpone(now + PAUSED_MS) end
    -- An earlier batch of the group may have failed again and be due later than this one. The order
    -- of the group has to be kept.
    if is_behind_held(g, batch) then
      local until_ms = math.max(g[HELD_UNTIL], now + BEHIND_MS)
      if index == claims then
        -- It holds its group from now on. Else the group could be cut, before this batch is looked
        -- at again, once the earlier ones are claimed.
        return hold_in_retry(INDEXES, id, batch, g, until_ms, now)
      end
      return postpone(until_ms)
    end
    local is_merged = batch[MERGED] ~= '' or has_result(batch)
    if is_merged or is_large(batch[TASK_COUNT], batch[LENGTH]) then
      entries = redis.pcall('LRANGE', tasks, 0, 0)
      if not entries.err then entries = {} end
    else
      local from = batch[START] - g[BASE]
      entries = redis.pcall('LRANGE', tasks, from, from + batch[TASK_COUNT] - 1)
    end
  end
  if entries.err then
    postpone(now + quarantine_ms)
    return report_quarantine(group, entries.err)
  end
  if held then
    redis.call('ZREM', index, id)
    release_hold(g, batch)
    -- At once: a later item of the call may be the group itself.
    write_group(groups, group, g)
    schedule(due, ready, group, g, now)
  end
  hand_out(id, batch, entries, suspect)
end

-- Claims the batches of these items.
local function take_over_each(items)
  local names = {}
  for i = 1, #items do names[i] = group_of(items[i]) end
  local group_records, is_foreign = read_records(groups, names, decode_group)
  for _, key in ipairs(items) do
    local group = group_of(key)
    take_over(id_of(key), group, group_records[group], is_foreign[group], KEYS[key])
  end
end

-- Batches that came back are older than the tasks that wait.
local returned, to_cut = {}, {}
for key = FIRST_KEY, #KEYS, 2 do
  local items = id_of(key) == '' and to_cut or returned
  items[#items + 1] = key
end
take_over_each(returned)
if not paused then
  cut_first_of_each(to_cut)
  cut_in_turns()
end
schedule_groups(due, ready, changed, now)
write_groups(groups, changed)
unlink_keys(emptied)
if #records > 0 then
  call_chunked('HSET', batches, records)
  call_chunked('ZADD', claims, deadlines)
end
if taken > 0 then
  redis.call('HSET', state, 'sequence', sequence)
  add_count(state, 'waiting', -taken)
  add_count(state, 'claimed', claimed)
  if lost_bytes > 0 then add_count(state, 'bytes', -lost_bytes) end
  if #flushed > 0 then
    remember_seen({
      state = state, seen = seen, seen_before = seen_before, window_ms = window_ms, now = now,
    }, flushed)
  end
end
return reply
