-- @include arguments
-- @include assert_type
-- @include batch
-- @include call_chunked
-- @include counts
-- @include dead
-- @include entry
-- @include group
-- @include result

-- The tasks of a batch that failed alone, while the rest of the batch is done. The last slice of
-- its commit makes a dead letter of each, or a batch of them that is tried again. If they are many,
-- several calls do, and make a batch each: PARTED in the record of the batch says where to go
-- on.


local MOST_BYTES = 512 * 1024  -- of the tasks that one call moves, about; one task always fits
local PART_ARGS = 3  -- of each failed task: id of its dead letter, place in the batch, error text
local BATCH_ARGS = 3  -- of the batch of those that are tried again: id, group key, error text

-- Reads '3 0 2': the number of failed tasks in this call, those before them, those behind them. If
-- they are tried again, with a delay (ms) and the number of attempts that have failed: as in
-- '3 0 2 50 1'.
local function read_parts(text)
  local n, before, left, retried = string.match(text, '^(%d+) (%d+) (%d+)(.*)$')
  local parts = {
    count = whole_number(n), before = whole_number(before), left = whole_number(left),
  }
  parts.keys, parts.arguments = 1 + parts.count, parts.count * PART_ARGS
  if retried ~= '' then
    local delay, attempts = string.match(retried, '^ (%d+) (%d+)$')
    parts.delay, parts.attempts = whole_number(delay), whole_number(attempts)
    parts.keys, parts.arguments = 2, parts.count + BATCH_ARGS
  end
  return parts
end

-- Before anything is written. `key`: the place in KEYS of `dead`, and the lists of the letters
-- follow; or of `retry`, and the tasks of the new batch follow.
local function check_parts(parts, key, from)
  if parts.delay then
    for at = from + BATCH_ARGS, from + parts.arguments - 1 do whole_number(ARGV[at]) end
    assert_type('ZCARD', { KEYS[key] })
    assert_type('LLEN', { KEYS[key + 1] })
    return
  end
  assert_type('HLEN', { KEYS[key] })
  for i = 1, parts.count do
    whole_number(ARGV[from + i * PART_ARGS - 2])
    assert_type('LLEN', { KEYS[key + i] })
  end
end

local function parted(batch) return tonumber(batch[PARTED]) or 0 end

-- The record of some tasks of a batch.
local function part_of(batch, count)
  local part = {}
  for place = GROUP, PARTED do part[place] = batch[place] end
  part[ATTEMPTS] = batch[ATTEMPTS] + 1
  part[BATCH_WEIGHT] = math.floor(batch[BATCH_WEIGHT] * count / math.max(1, batch[TASK_COUNT]))
  return part
end

-- The entry at a place of a batch at the head of its group. There is none if somebody else removed
-- the list, and then there is nothing to keep.
local function entry_at(tasks, batch, place)
  local entry = tonumber(place) < batch[TASK_COUNT] and redis.pcall('LINDEX', tasks, place)
  return type(entry) == 'string' and entry or nil
end

-- Makes a batch of the failed tasks, in a group of its own. As `move_parts`.
local function retry_parts(state, groups, batches, tasks, batch, parts, now)
  local id, group, error = unpack(ARGV, parts.from, parts.from + BATCH_ARGS - 1)
  local entries, gone, length = {}, parts.before, 0
  for at = parts.from + BATCH_ARGS, parts.from + parts.arguments - 1 do
    if length >= MOST_BYTES and has_result(batch) then break end
    local entry = entry_at(tasks, batch, ARGV[at])
    gone = gone + 1
    entries[#entries + 1] = entry
    length = length + (entry and #entry or 0)
  end
  -- The batch may exist: a second one would have the same id.
  if #entries > 0 and redis.call('HEXISTS', batches, id) == 0 then
    local part, g = part_of(batch, #entries), new_group()
    part[GROUP], part[START], part[TASK_COUNT], part[READ] = group, 0, #entries, #entries
    part[ATTEMPTS], part[CREATED] = parts.attempts, now
    part[ERROR], part[LENGTH] = error, length
    part[MERGED], part[DEATHS], part[ALONE], part[ENQUEUED] = '', 0, 0, 0
    part[LETTER], part[RESULT], part[PARTED] = '', '', ''
    part[OPENED] = entry_arrival(entries[1])
    g[CLAIMED] = #entries
    hold(g, part, now + parts.delay)
    redis.call('UNLINK', KEYS[parts.key + 1])  -- nobody knows what is there
    call_chunked('RPUSH', KEYS[parts.key + 1], entries)
    redis.call('HSET', batches, id, cmsgpack.pack(part))
    redis.call('ZADD', KEYS[parts.key], now + parts.delay, id)
    write_group(groups, group, g)
    add_count(state, 'claimed', #entries)
    add_count(state, 'bytes', length)
  end
  batch[PARTED] = string.format('%.0f', gone)
  return gone
end

-- Makes dead letters of the failed tasks of a batch at the head of its group, or a batch that is
-- tried again. Ends before the last one if they are large and a further call can go on. Returns how
-- many have left.
local function move_parts(state, groups, batches, tasks, batch, parts, now)
  if parts.delay then return retry_parts(state, groups, batches, tasks, batch, parts, now) end
  local dead, moved = KEYS[parts.key], 0
  local gone, bytes = parts.before, 0
  local source = part_of(batch, 1)
  for i = 1, parts.count do
    if bytes >= MOST_BYTES and has_result(batch) then break end
    local id, place, error = unpack(ARGV, parts.from + (i - 1) * PART_ARGS,
      parts.from + i * PART_ARGS - 1)
    local entry = entry_at(tasks, batch, place)
    -- The letter may exist, or be requeued and in flight: a second one would have the same id.
    local known = redis.call('HEXISTS', dead, id) + redis.call('HEXISTS', batches, id)
    gone = gone + 1
    if entry and known == 0 then
      bytes = bytes + #entry
      redis.call('HSET', dead, id, pack_dead{
        batch = source, task_count = 1, length = #entry, died = now, error = error, traceback = '',
      })
      redis.call('RPUSH', KEYS[parts.key + i], entry)
      moved = moved + 1
    end
  end
  add_count(state, 'dead', moved)
  batch[PARTED] = string.format('%.0f', gone)
  return gone
end
