-- add: puts tasks into their groups.
--
-- KEYS   1 state  2 groups  3 due  4 ready  5 call (of this producer)  6 seen  7 seen_before
--        then for each section: tasks and ids of its group
-- ARGV   1 call number, larger in each call of this producer; '' if it never repeats a call
--        2 how long the call is remembered, ms
--        3 wake channel  4 partition number/number of partitions, such as 3/16
--        5 maximum number of pending tasks in this partition, 0 for no maximum
--        6 maximum bytes of their entries, 0 for no maximum
--        7 '1' if ids that were flushed lately are not accepted again, else ''
--        then for each section: group key; limits, four numbers with one space between: grace
--        period (ms), max delay (ms), max size, priority; number of tasks; for each task id, body
-- Reply  for each section the number of its tasks that were new (an id that already waits in its
--        group changes nothing), or the text of the error that refused the whole section: a key of
--        the group holds a foreign type or record; its limits, an id or the group key are malformed
--        or out of range; or too much would be pending (FULL), also the later sections of its group
--        then. Other errors refuse the whole call, with nothing written.
--
-- A section is a run of tasks for one group that have the same limits. A call that is repeated
-- because its reply was lost gets its first reply again. A call that comes after a later call of
-- the same producer is refused: the producer has given it up.

-- @include arguments
-- @include assert_type
-- @include call_chunked
-- @include clock
-- @include counts
-- @include entry
-- @include group
-- @include partitions
-- @include record
-- @include schema
-- @include seen
-- @include server_errors
-- @include waiting
-- @include wake

local state, groups, due, ready, call = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local seen, seen_before = KEYS[6], KEYS[7]
local call_number, remember_ms, channel, place = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local max_tasks, max_bytes = whole_number(ARGV[5]), whole_number(ARGV[6])
local dedupe = ARGV[7] == '1'
local FIRST_KEY, FIRST_ARG = 8, 8  -- of the first section
-- Places in a section, from its first argument on; its tasks come last.
local GROUP_KEY, LIMITS, COUNT, TASKS = 0, 1, 2, 3
-- The ranges of the limits, as in Python. A foreign producer that means "never" by the largest
-- number it has would leave records that others can't read.
local LONGEST_MS, LARGEST_SIZE, HIGHEST_PRIORITY = 316224000000, 1000000, 1000
local BAD_LIMITS = 'ERR limits: GRACE_MS DELAY_MS (at most ten years) SIZE (1 to 1000000) PRIORITY'
local LONGEST_GROUP_KEY = 512  -- bytes

if call_number then
  local remembered = redis.call('GET', call)
  if remembered then
    local last_number, last_reply = unpack(cmsgpack.unpack(remembered))
    if last_number == call_number then
      -- A write, so that WAIT on this connection covers what the first call wrote.
      redis.call('PEXPIRE', call, remember_ms)
      return last_reply
    end
    if last_number > call_number then return redis.error_reply('LATE a later call was made') end
  end
end
assert_type('ZCARD', { due, ready })
if dedupe then assert_type('SCARD', { seen, seen_before }) end
local stored_waiting, stored_claimed, stored_bytes, wake, schema, stored_partitions, seen_until,
  seen_before_until = unpack(redis.call('HMGET', state, 'waiting', 'claimed', 'bytes', 'wake',
  'schema', 'partitions', SEEN_UNTIL, SEEN_BEFORE_UNTIL))
local refused = refuse_schema(schema) or refuse_partitions(stored_partitions, place)
if refused then return refused end

local args = ARGV
local last_arg = FIRST_ARG - 1
for _ = FIRST_KEY, #KEYS, 2 do
  last_arg = last_arg + TASKS + 2 * whole_number(args[last_arg + 1 + COUNT])
end
assert_arguments(last_arg == #args and #KEYS % 2 == 1)
assert_arguments(not call_number or whole_number(remember_ms) > 0)
local now = clock()
local earliest = math.huge  -- when the first of the changed groups is due
local total, total_length = 0, 0  -- of the new tasks

-- Backpressure. Tasks in flight are pending too: they take memory until their queue has them.
local limited = max_tasks > 0 or max_bytes > 0
if max_tasks == 0 then max_tasks = math.huge end
if max_bytes == 0 then max_bytes = math.huge end
local pending = (tonumber(stored_waiting) or 0) + (tonumber(stored_claimed) or 0)
local pending_bytes = tonumber(stored_bytes) or 0

-- The head of an entry: arrival time and length of the id. Most ids have the same length.
local arrival, prefix, heads = now, entry_prefix(now), {}

-- Sets the arrival time of the entries to come. It never falls along a list, not even after the
-- clock was set back. The grace period then counts from the later time, the max delay from now.
local function arrive_after(last)
  local after = math.max(now, last)
  if after == arrival then return end
  arrival, prefix, heads = after, entry_prefix(after), {}
end

local function entry_head(id)
  local head = heads[#id]
  if not head and #id >= 1 and #id <= 128 then
    head = prefix .. string.char(#id)
    heads[#id] = head
  end
  return head
end

-- Most sections have the same limits, so each text is parsed once. Limits that are malformed or out
-- of range have no priority.
local parsed = {}
local function parse_limits(text)
  local limits = parsed[text]
  if not limits then
    local grace, delay, size, priority = string.match(text, '^(%d+) (%d+) (%d+) (-?%d+)$')
    grace, delay, size, priority =
      tonumber(grace), tonumber(delay), tonumber(size), tonumber(priority)
    if priority and grace <= LONGEST_MS and delay <= LONGEST_MS and size >= 1
      and size <= LARGEST_SIZE and priority >= -HIGHEST_PRIORITY
      and priority <= HIGHEST_PRIORITY then
      limits = { grace, delay, size, priority }
    else
      limits = {}
    end
    parsed[text] = limits
  end
  return limits[1], limits[2], limits[3], limits[4]
end

local asks_seen = dedupe and is_known(seen_until, now)
local asks_seen_before = dedupe and is_known(seen_before_until, now)
local function seen_lately(group, id)
  if not asks_seen and not asks_seen_before then return false end
  local member = seen_member(group, id)
  return asks_seen and redis.call('SISMEMBER', seen, member) == 1
    or asks_seen_before and redis.call('SISMEMBER', seen_before, member) == 1
end

-- The groups with a section that was refused for lack of room: later ones must not overtake it.
local full_groups = limited and {}

-- Returns an error if the n tasks from ARGV[first] on are too many. Known tasks do not count.
local function too_full(group, ids, first, n)
  if full_groups[group] then return full_groups[group] end
  local tasks, bytes = pending + total, pending_bytes + total_length
  local last = first + 2 * n - 2
  for i = first, last, 2 do
    local id, body = args[i], args[i + 1]
    tasks = tasks + 1
    bytes = bytes + #prefix + 1 + #id + #body
  end
  if tasks <= max_tasks and bytes <= max_bytes then return nil end
  for i = first, last, 2 do
    local id, body = args[i], args[i + 1]
    local waits = redis.pcall('HEXISTS', ids, id)
    if type(waits) == 'table' then return waits.err end
    if waits == 1 or seen_lately(group, id) then
      tasks = tasks - 1
      bytes = bytes - #prefix - 1 - #id - #body
    end
  end
  if tasks > pending + total and (tasks > max_tasks or bytes > max_bytes) then
    full_groups[group] = 'FULL too much is pending'
    return full_groups[group]
  end
end

-- Adds the section at ARGV[at], which has n tasks. Returns the number of its tasks that were new,
-- or the error that refused it. Numbers go to Redis as text throughout: its own conversion takes
-- longer than the command.
local function add_section(tasks, ids, at, n)
  local group, limits_text, first = args[at + GROUP_KEY], args[at + LIMITS], at + TASKS
  if #group < 1 or #group > LONGEST_GROUP_KEY then return 'ERR a group key has 1 to 512 bytes' end
  local g, foreign = read_group(groups, group)
  if foreign then return FOREIGN end
  g = g or new_group()
  local number = next_number(g)
  local grace, delay, size, priority = parse_limits(limits_text)
  if not priority then return BAD_LIMITS end
  local full = limited and too_full(group, ids, first, n)
  if full then return full end
  arrive_after(g[LAST])
  local entries, length = {}, 0
  for i = first, first + 2 * n - 2, 2 do
    local id = args[i]
    local head = entry_head(id)
    if not head then
      local kept = remove_ids(ids, entries)
      return kept and kept.err or 'ERR an id has 1 to 128 bytes'
    end
    -- The first write: Redis refuses here, for a foreign type or for lack of memory, or not at all.
    local new = 0
    if not seen_lately(group, id) then
      new = redis.pcall('HSETNX', ids, id, string.format('%d', number + #entries))
    end
    if new == 1 then
      local entry = head .. id .. args[i + 1]
      entries[#entries + 1] = entry
      length = length + #entry
    elseif new ~= 0 then
      return new.err
    end
  end
  if #entries == 0 then return 0 end
  for from = 1, #entries, CHUNK do
    local to = math.min(from + CHUNK - 1, #entries)
    local pushed = redis.pcall('RPUSH', tasks, unpack(entries, from, to))
    if type(pushed) == 'table' then  -- a foreign type: nothing has been pushed
      remove_ids(ids, entries)
      return pushed.err
    end
  end

  local was_full = g[WAITING] > 0 and g[WAITING] >= g[SIZE]
  local due_before = g[WAITING] > 0 and due_at(g)
  if not due_before then
    g[FIRST], g[DEADLINE], g[DELAY], g[SIZE], g[PRIORITY] = now, now + delay, delay, size, priority
    g[SINCE] = 0
  else
    g[DEADLINE] = math.min(g[DEADLINE], now + delay)
    g[DELAY] = math.min(g[DELAY], delay)
    g[SIZE] = math.min(g[SIZE], size)
    g[PRIORITY] = math.max(g[PRIORITY], priority)
  end
  g[LAST], g[GRACE] = arrival, grace
  g[WAITING] = g[WAITING] + #entries
  g[BYTES] = g[BYTES] + length
  local due_ms = due_at(g)
  if due_ms == 0 then became_due(g, due_before or now, now) end
  write_group(groups, group, g)
  total = total + #entries
  total_length = total_length + length

  if g[HELD] > 0 then return #entries end
  if due_ms > 0 then
    -- The time in `due` may be too early, never too late. A task that only moves the time back
    -- leaves the index as it is, and `poll` corrects it. A group in `ready` stays there.
    if not due_before or due_ms < due_before then
      redis.call('ZADD', due, string.format('%d', due_ms), group)
      earliest = math.min(earliest, due_ms)
    end
  else
    redis.call('ZADD', ready, 'LT', ready_score(g), group)
    if not was_full then
      redis.call('ZREM', due, group)
      earliest = now
    end
  end
  return #entries
end

local reply = {}
local at = FIRST_ARG
for key = FIRST_KEY, #KEYS, 2 do
  local tasks, ids, n = KEYS[key], KEYS[key + 1], tonumber(args[at + COUNT])
  local status = add_section(tasks, ids, at, n)
  refused = type(status) == 'string' and total == 0 and server_error(status)
  if refused then return refused end
  reply[#reply + 1] = status
  at = at + TASKS + 2 * n
end
if total > 0 then
  add_count(state, 'waiting', total)
  add_count(state, 'bytes', total_length)
  if earliest < (tonumber(wake) or 0) then
    wake_leader(state, channel, partition_number(place))
  end
end
-- Even if nothing was new: the tasks that wait now may be gone when the call is repeated.
if call_number then
  redis.call('SET', call, cmsgpack.pack({ call_number, reply }), 'PX', remember_ms)
end
return reply
