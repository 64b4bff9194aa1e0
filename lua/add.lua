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
--        then for each section: group key; limits: includes/limits.lua; number of tasks, or number
--        of tasks and 3 with one space between; for each task id, body and, if the 3 is there, the
--        part of its limits behind the semicolon, or ''
-- Reply  for each section the number of its tasks that were new (an id that already waits in its
--        group changes nothing), or this number and that of tasks that were replaced: also of a
--        section with usual limits in a group that has others, so that a client learns that calls
--        with fewer groups are better. Or the text of the error that refused the whole section: a
--        key of the group holds a foreign type or record; its limits, an id or the group key are
--        malformed or out of range; or too much would be pending (FULL), also the later sections of
--        its group then; or its tasks that replace others are more than 25 with those of earlier
--        sections. Other errors refuse the whole call, with nothing written.
--
-- A section is a run of tasks for one group, in their order. A call that is repeated
-- because its reply was lost gets its first reply again. A call that comes after a later call of
-- the same producer is refused: the producer has given it up.

-- @include arguments
-- @include assert_type
-- @include call_chunked
-- @include clock
-- @include counts
-- @include entry
-- @include group
-- @include limits
-- @include many
-- @include partitions
-- @include record
-- @include rules
-- @include schema
-- @include seen
-- @include segments
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
local BAD_LIMITS = 'ERR limits: GRACE_MS DELAY_MS (at most ten years) SIZE (1 to 1000000) PRIORITY'
local LONGEST_GROUP_KEY = 512  -- bytes
local MOST_REPLACING = 25  -- tasks in a call, since each one is searched for
local TOO_MANY_REPLACING = 'ERR at most 25 tasks of a call may replace others'

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
local stored_waiting, stored_bytes, wake, schema, stored_partitions =
  unpack(redis.call('HMGET', state, 'waiting', 'bytes', 'wake', 'schema', 'partitions'))
local refused = refuse_schema(schema) or refuse_partitions(stored_partitions, place, true)
if refused then return refused end

local args = ARGV

-- The number of tasks of the section at ARGV[at], and the number of arguments of each.
local sizes = {}
local function section_size(at)
  local text = args[at + COUNT]
  local count = sizes[text or '']
  if count then return count, 2 end
  if text and string.sub(text, -2) == ' 3' then
    return whole_number(string.sub(text, 1, -3)), 3
  end
  count = whole_number(text)
  sizes[text] = count
  return count, 2
end

local last_arg, names = FIRST_ARG - 1, {}
for _ = FIRST_KEY, #KEYS, 2 do
  local n, step = section_size(last_arg + 1)
  names[#names + 1] = args[last_arg + 1 + GROUP_KEY]
  last_arg = last_arg + TASKS + step * n
end
assert_arguments(last_arg == #args and #KEYS % 2 == 1)
assert_arguments(not call_number or whole_number(remember_ms) > 0)
local now = clock()
local earliest = math.huge  -- when the first of the changed groups is due
local total, total_length = 0, 0  -- of the new tasks
local total_replaced, total_replacing = 0, 0

-- Backpressure. Tasks in flight are pending too: they take memory until their queue has them.
local limited = max_tasks > 0 or max_bytes > 0
if max_tasks == 0 then max_tasks = math.huge end
if max_bytes == 0 then max_bytes = math.huge end
local waiting, pending_bytes = to_count(stored_waiting), to_count(stored_bytes)
local claimed = limited and redis.call('HMGET', state, 'claimed')[1]
local pending = waiting + to_count(claimed)

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

-- Whether a task with this id was flushed lately. Functions that few calls need are made by those
-- calls only: Redis makes all others anew in each call.
local seen_lately = nil
if dedupe then
  local till, till_before = unpack(redis.call('HMGET', state, SEEN_UNTIL, SEEN_BEFORE_UNTIL))
  local asks_seen, asks_seen_before = is_known(till, now), is_known(till_before, now)
  function seen_lately(group, id)
    if not asks_seen and not asks_seen_before then return false end
    local member = seen_member(group, id)
    return asks_seen and redis.call('SISMEMBER', seen, member) == 1
      or asks_seen_before and redis.call('SISMEMBER', seen_before, member) == 1
  end
end

-- The groups with a section that was refused for lack of room: later ones must not overtake it.
local full_groups = limited and {}

-- Returns an error if the n tasks from ARGV[first] on are too many. Known tasks do not count.
local too_full = nil
if limited then
  function too_full(group, ids, first, n, step)
    if full_groups[group] then return full_groups[group] end
    local tasks, bytes = pending + total, pending_bytes + total_length
    local last = first + step * (n - 1)
    for i = first, last, step do
      local id, body = args[i], args[i + 1]
      tasks = tasks + 1
      bytes = bytes + #prefix + 1 + #id + #body
    end
    if tasks <= max_tasks and bytes <= max_bytes then return nil end
    for i = first, last, step do
      local id, body = args[i], args[i + 1]
      local waits = redis.pcall('HEXISTS', ids, id)
      if type(waits) == 'table' then return waits.err end
      if waits == 1 or dedupe and seen_lately(group, id) then
        tasks = tasks - 1
        bytes = bytes - #prefix - 1 - #id - #body
      end
    end
    if tasks > pending + total and (tasks > max_tasks or bytes > max_bytes) then
      full_groups[group] = 'FULL too much is pending'
      return full_groups[group]
    end
  end
end

local with_limits = {}

-- Defines what sections need whose tasks have limits of their own, or replace others.
local function use_limits()
  if with_limits.replace_task then return end
  use_segments()

  -- The limits of each task of a section, by its place in ARGV, and how many of them replace
  -- others; nil if one is malformed.
  function with_limits.read_own_limits(shared, limits, first, n)
    local own, replacing = {}, 0
    for i = first, first + 3 * (n - 1), 3 do
      local text = args[i + 2]
      local of_task = text == '' and limits or parse_limits(shared .. ';' .. text)
      if not of_task then return nil end
      own[i], replacing = of_task, replacing + of_task.replace
    end
    return own, replacing
  end

  -- Returns a function that makes the entry of a task. Tasks of the same limits, one after the
  -- other, are counted in the summaries.
  function with_limits.entries_with_limits(common, summaries)
    local texts, last_limits = {}, nil
    local prefix_with_limits = entry_prefix(arrival + WITH_LIMITS)
    return function(id, body, limits)
      local text = texts[limits] or segments.stored_limits(limits, common)
      texts[limits] = text
      local entry
      if text == '' then
        entry = entry_head(id) .. id .. body
      else
        entry = prefix_with_limits .. string.char(#id) .. id .. string.char(#text) .. text .. body
      end
      local s = summaries[#summaries]
      if limits == last_limits then
        s.count, s.bytes, s.weight = s.count + 1, s.bytes + #entry, s.weight + limits.weight
      else
        last_limits = limits
        summaries[#summaries + 1] = segments.summary(limits, 1, #entry, limits.weight, now)
      end
      return entry
    end
  end

  -- The place in the list of a task that is to be replaced, or nil if it does not wait. `number` is
  -- that of the first task of the section, whose tasks are not in the list yet.
  function with_limits.waiting_place(tasks, ids, g, number, id)
    local found = tonumber(redis.call('HGET', ids, id) or nil)
    if not found then return nil end
    if found >= number then return g[CLAIMED] + g[WAITING] + found - number end
    return place_of(tasks, ids, g, found, id)
  end

  -- Puts a task in the place of the waiting one with the same id, which keeps its arrival time.
  -- Returns the bytes by which the group grows.
  function with_limits.replace_task(tasks, g, task, limits)
    local old = redis.call('LINDEX', tasks, task.place) or ''
    local text = segments.stored_limits(limits, segments.common_limits(g))
    local first = entry_arrival(old)
    if text ~= '' then
      first = first + WITH_LIMITS
      text = string.char(#text) .. text
    end
    local new = entry_prefix(first) .. string.char(#task.id) .. task.id .. text .. task.body
    redis.call('LSET', tasks, task.place, new)
    local from = task.place - g[CLAIMED]
    local grown = segments.replace(tasks, g, old, new, limits, from, now)
    g[BYTES] = g[BYTES] + grown
    return grown
  end
end

-- Whether the tasks of a group and those of a section with these limits have all the same, and none
-- but the usual ones.
local function is_usual(g, limits)
  return g[RULES] == 0 and limits.plain and (g[WAITING] == 0
    or limits.grace == g[GRACE] and limits.delay == g[DELAY] and limits.size == g[SIZE]
      and limits.priority == g[PRIORITY])
end

-- The records of all groups. They are written once, after all sections, and before that those of
-- groups with segments are closed.
local group_records, is_foreign = read_records(groups, names, decode_group)
local changed, with_segments = {}, {}

-- Adds the section at ARGV[at], which has n tasks of `step` arguments. Returns the number of its
-- tasks that were new, or the error that refused it. Numbers go to Redis as text throughout: its
-- own conversion takes longer than the command.
local function add_section(tasks, ids, at, n, step)
  local group, shared, first = args[at + GROUP_KEY], args[at + LIMITS], at + TASKS
  if #group < 1 or #group > LONGEST_GROUP_KEY then return 'ERR a group key has 1 to 512 bytes' end
  if is_foreign[group] then return FOREIGN end
  local g = group_records[group] or new_group()
  local number = next_number(g)
  local limits, own, replacing = parse_limits(shared), nil, nil
  if not limits then return BAD_LIMITS end
  if step == 3 then
    use_limits()
    own, replacing = with_limits.read_own_limits(shared, limits, first, n)
    if not own then return BAD_LIMITS end
  elseif limits.replace > 0 then
    replacing = n
  end
  if replacing then
    if total_replacing + replacing > MOST_REPLACING then return TOO_MANY_REPLACING end
    total_replacing = total_replacing + replacing
  end
  local full = limited and too_full(group, ids, first, n, step)
  if full then return full end
  arrive_after(g[LAST])
  if own or limits.replace > 0 then
    local stored = redis.pcall('LLEN', tasks)
    if type(stored) == 'table' then return stored.err end
  end
  local usual = not own and is_usual(g, limits)
  local summaries, common, make_entry = {}, nil, nil
  if not usual then
    use_limits()
    common = g[WAITING] > 0 and segments.common_limits(g) or own and own[first] or limits
    make_entry = with_limits.entries_with_limits(common, summaries)
  end
  local entries, length, flushes, replaced = {}, 0, false, {}
  for i = first, first + step * (n - 1), step do
    local id = args[i]
    local head = entry_head(id)
    if not head then
      local kept = remove_ids(ids, entries)
      return kept and kept.err or 'ERR an id has 1 to 128 bytes'
    end
    -- The first write: Redis refuses here, for a foreign type or for lack of memory, or not at all.
    local new = 0
    if not (dedupe and seen_lately(group, id)) then
      new = redis.pcall('HSETNX', ids, id, string.format('%d', number + #entries))
    end
    if new == 0 and make_entry and (own and own[i] or limits).replace > 0 then
      local waits_at = with_limits.waiting_place(tasks, ids, g, number, id)
      if waits_at then
        replaced[#replaced + 1] = { place = waits_at, id = id, body = args[i + 1], at = i }
      elseif not (dedupe and seen_lately(group, id)) then
        -- A large batch has it that was not read yet.
        redis.call('HSET', ids, id, string.format('%d', number + #entries))
        new = 1
      end
    end
    if new == 1 then
      local entry = head .. id .. args[i + 1]
      if make_entry then
        local of_task = own and own[i] or limits
        entry = make_entry(id, args[i + 1], of_task)
        flushes = flushes or of_task.flush > 0
      end
      entries[#entries + 1] = entry
      length = length + #entry
    elseif new ~= 0 then
      return new.err
    end
  end
  if #entries == 0 and #replaced == 0 then return 0 end
  for from = 1, #entries, CHUNK do
    local to = math.min(from + CHUNK - 1, #entries)
    local pushed = redis.pcall('RPUSH', tasks, unpack(entries, from, to))
    if type(pushed) == 'table' then  -- a foreign type: nothing has been pushed
      remove_ids(ids, entries)
      return pushed.err
    end
  end

  local due_before = g[WAITING] > 0 and due_at(g)
  local was_full = due_before == 0 and is_full(g)
  if not usual then
    segments.add(g, summaries, common)
    local rules = g[RULES]
    rules[INTERVAL], rules[LEADING] = limits.min_interval, limits.leading
  elseif due_before then
    g[DEADLINE] = math.min(g[DEADLINE], now + limits.delay)
  else
    g[GRACE], g[SIZE], g[PRIORITY] = limits.grace, limits.size, limits.priority
    g[DEADLINE], g[DELAY] = now + limits.delay, limits.delay
  end
  if not due_before then g[FIRST], g[SINCE] = now, 0 end
  g[LAST] = arrival
  g[WAITING] = g[WAITING] + #entries
  g[BYTES] = g[BYTES] + length
  for _, task in ipairs(replaced) do
    local of_task = own and own[task.at] or limits
    length = length + with_limits.replace_task(tasks, g, task, of_task)
    flushes = flushes or of_task.flush > 0
  end
  if flushes then g[MARKED] = g[WAITING] end
  local due_ms = due_at(g)
  if due_ms == 0 then became_due(g, due_before or now, now) end
  group_records[group], changed[group] = g, g
  if not usual then with_segments[group] = g end
  total = total + #entries
  total_length = total_length + length

  total_replaced = total_replaced + #replaced
  local learns = not usual and not own and limits.plain
  local result = (learns or #replaced > 0) and { #entries, #replaced } or #entries
  if g[HELD] > 0 or g[RULES] ~= 0 and is_paused(g) then return result end
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
      earliest = math.min(earliest, now)
    end
  end
  return result
end

local reply = {}
local at = FIRST_ARG
for key = FIRST_KEY, #KEYS, 2 do
  local tasks, ids = KEYS[key], KEYS[key + 1]
  local n, step = section_size(at)
  local status = add_section(tasks, ids, at, n, step)
  refused = type(status) == 'string' and total + total_replaced == 0 and server_error(status)
  if refused then return refused end
  reply[#reply + 1] = status
  at = at + TASKS + step * n
end
for _, g in pairs(with_segments) do
  segments.close(g)
  segments.drop_rules(g)
end
write_groups(groups, changed)
if total + total_replaced > 0 then
  redis.call('HSET', state, 'waiting', string.format('%d', waiting + total),
    'bytes', string.format('%d', pending_bytes + total_length))
  if earliest < (tonumber(wake) or 0) then
    wake_leader(state, channel, partition_number(place))
  end
end
-- Even if nothing was new: the tasks that wait now may be gone when the call is repeated.
if call_number then
  redis.call('SET', call, cmsgpack.pack({ call_number, reply }), 'PX', remember_ms)
end
return reply
