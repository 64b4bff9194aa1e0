-- @include arguments
-- @include assert_type
-- @include batch
-- @include counts
-- @include dead
-- @include result

-- The tasks of a batch that failed alone, while the rest of the batch is done. The last slice of
-- its commit makes a dead letter of each, or several calls do, if they are many: PARTED in the
-- record of the batch says where to go on.

-- Reads '3 0 2': the number of failed tasks in this call, those before them, those behind them.
local function read_parts(text)
  local n, before, left = string.match(text, '^(%d+) (%d+) (%d+)$')
  return { count = whole_number(n), before = whole_number(before), left = whole_number(left) }
end

local MOST_BYTES = 512 * 1024  -- of the tasks that one call moves, about; one task always fits
local PART_ARGS = 3  -- of each failed task: id of its dead letter, place in the batch, error text

-- Before anything is written. `key`: the place in KEYS of `dead`; the lists of the letters follow.
local function check_parts(parts, key, from)
  assert_type('HLEN', { KEYS[key] })
  for i = 1, parts.count do
    whole_number(ARGV[from + i * PART_ARGS - 2])
    assert_type('LLEN', { KEYS[key + i] })
  end
end

local function parted(batch) return tonumber(batch[PARTED]) or 0 end

-- Makes dead letters of the failed tasks of a batch at the head of its group. `parts` has also the
-- places of `dead` in KEYS and of the first failed task in ARGV: `key` and `from`. Ends before the
-- last one if they are large and a further call can go on. Returns how many have left.
local function move_parts(state, batches, tasks, batch, parts, now)
  local dead, moved = KEYS[parts.key], 0
  local gone, bytes = parts.before, 0
  local source = {}
  for place = GROUP, PARTED do source[place] = batch[place] end
  source[ATTEMPTS] = batch[ATTEMPTS] + 1
  source[BATCH_WEIGHT] = math.floor(batch[BATCH_WEIGHT] / math.max(1, batch[TASK_COUNT]))
  for i = 1, parts.count do
    if bytes >= MOST_BYTES and has_result(batch) then break end
    local id, place, error = unpack(ARGV, parts.from + (i - 1) * PART_ARGS,
      parts.from + i * PART_ARGS - 1)
    -- No entry: somebody else removed the list, and there is nothing to keep.
    local entry = tonumber(place) < batch[TASK_COUNT] and redis.pcall('LINDEX', tasks, place)
    -- The letter may exist, or be requeued and in flight: a second one would have the same id.
    local known = redis.call('HEXISTS', dead, id) + redis.call('HEXISTS', batches, id)
    gone = gone + 1
    if type(entry) == 'string' and known == 0 then
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
