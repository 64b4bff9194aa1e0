-- apply_limits: gives the waiting tasks of groups the limits that policies set, but for those that
-- a task has set itself.
--
-- KEYS   1 state  2 groups  3 due  4 ready, then for each group: its tasks
-- ARGV   1 wake channel  2 partition number, then for each group: group key; limits, see below;
--        number of tasks that are described, and for each of them the SHA-1 of its entry in
--        hexadecimal digits and the limits that it has set itself: names with one space between
-- Reply  for each group a number
--        0: nothing was to change, or no task waits
--        1: its limits were changed
--        2: a task that may have set limits was not described; read the group and call again
--        3: it stays as it is: too many tasks or bytes wait, or foreign data are there
--
-- The limits are NAME=NUMBER with one space between: grace and delay (ms), size, priority,
-- max_bytes, max_weight, min_interval (ms), leading. Those that are not named stay.
--
-- A task has set limits only if its body is an array of four: those of three or two need no
-- description. So tasks that arrive between the reading and this call do no harm.

-- @include arguments
-- @include assert_type
-- @include clock
-- @include counts
-- @include entry
-- @include group
-- @include limits
-- @include rules
-- @include schema
-- @include segments
-- @include wake

local state, groups, due, ready = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local channel, partition = ARGV[1], ARGV[2]
local FIRST_KEY, FIRST_ARG = 5, 3
local SAME, CHANGED, AGAIN, LEFT = 0, 1, 2, 3
local MOST_TASKS, MOST_BYTES = 200, 512 * 1024  -- of one group, and of all groups of a call
local PLAIN_BODIES = { [0x92] = true, [0x93] = true }  -- msgpack arrays of two and three

-- The limits in a text, by name; raises an error if it is malformed.
local function read_policy(text)
  local HIGHEST = {
    grace = NEVER, delay = NEVER, size = 1000000, max_bytes = 2^40, max_weight = 2^50,
    min_interval = NEVER, leading = 1, priority = HIGHEST_PRIORITY,
  }
  local found = {}
  for word in string.gmatch(text, '%S+') do
    local name, digits = string.match(word, '^([a-z_]+)=(-?%d+)$')
    local number = tonumber(digits)
    local least = name == 'priority' and -HIGHEST_PRIORITY or name == 'size' and 1 or 0
    assert_arguments(HIGHEST[name] and number >= least and number <= HIGHEST[name])
    found[name] = number
  end
  return found
end

-- Reads the arguments of all groups, before the first write.
local wanted, at = {}, FIRST_ARG
for _ = FIRST_KEY, #KEYS do
  local count = whole_number(ARGV[at + 2])
  local group = { key = ARGV[at], policy = read_policy(ARGV[at + 1] or ''), described = {} }
  assert_arguments(at + 2 + 2 * count <= #ARGV)
  for i = at + 3, at + 2 + 2 * count, 2 do group.described[ARGV[i]] = ARGV[i + 1] end
  wanted[#wanted + 1] = group
  at = at + 3 + 2 * count
end
assert_arguments(#KEYS >= FIRST_KEY - 1 and at == #ARGV + 1)

local refused = refuse_schema(redis.call('HGET', state, 'schema'))
if refused then return refused end
assert_type('ZCARD', { due, ready })
local now = clock()
use_segments()
local tasks_left, bytes_left = MOST_TASKS, MOST_BYTES

-- The place of the first byte of the body of an entry.
local function body_place(entry)
  local place = 8 + (string.byte(entry, 7) or 0)
  if not entry_limits(entry) then return place end
  return place + 1 + (string.byte(entry, place) or 0)
end

-- The limits that a task gets, and whether they differ from those that it has.
local function limits_under(policy, limits, weight, own)
  local merged, differs = { plain = false, weight = weight }, false
  for _, name in ipairs({ 'grace', 'delay', 'size', 'priority', 'max_bytes', 'max_weight' }) do
    local value = policy[name]
    if not value or string.find(' ' .. own .. ' ', ' ' .. name .. ' ', 1, true) then
      value = limits[name]
    end
    differs = differs or value ~= limits[name]
    merged[name] = value
  end
  merged.due, merged.not_before = limits.due, limits.not_before
  return merged, differs
end

-- The new limits of each entry; nil if a task that may have set limits is not described.
local function new_limits(group, entries, common)
  local merged, cache, differ = {}, {}, false
  for i = 1, #entries do
    local entry = entries[i]
    local own = ''
    if not PLAIN_BODIES[string.byte(entry, body_place(entry)) or 0] then
      own = group.described[redis.sha1hex(entry)]
      if not own then return nil end
    end
    local limits, weight = segments.limits_of(entry, common)
    local of_kind = cache[limits] or {}
    cache[limits] = of_kind
    local kind = weight .. ' ' .. own
    if not of_kind[kind] then
      local differs
      of_kind[kind], differs = limits_under(group.policy, limits, weight, own)
      differ = differ or differs
    end
    merged[i] = of_kind[kind]
  end
  return merged, differ
end

-- Writes the entries whose stored limits are others now. Returns the summaries of all, and their
-- bytes.
local function write_entries(tasks, g, entries, merged)
  local summaries, bytes, last = {}, 0, nil
  for i = 1, #entries do
    local limits, entry = merged[i], entries[i]
    local text, arrival = segments.stored_limits(limits, merged[1]), entry_arrival(entry)
    local id, place = entry_id(entry), body_place(entry)
    local head = text == '' and arrival or arrival + WITH_LIMITS
    local new = entry_prefix(head) .. string.char(#id) .. id
      .. (text == '' and '' or string.char(#text) .. text) .. string.sub(entry, place)
    if place <= #entry + 1 and new ~= entry then  -- bytes that are no entry stay
      redis.call('LSET', tasks, g[CLAIMED] + i - 1, new)
      entry = new
    end
    bytes = bytes + #entry
    local s = summaries[#summaries]
    if limits == last then
      s.count, s.bytes, s.weight = s.count + 1, s.bytes + #entry, s.weight + limits.weight
    else
      last = limits
      s = segments.summary(limits, 1, #entry, limits.weight, math.min(arrival, now))
      summaries[#summaries + 1] = s
    end
  end
  return summaries, bytes
end

-- Gives the record of a group the limits of its tasks anew.
local function summarize(g, summaries, common, policy)
  local rules = segments.use_rules(g)
  for _, place in ipairs({ WEIGHT, MAX_BYTES, MAX_WEIGHT, DUE, NOT_BEFORE }) do
    rules[place] = 0
  end
  rules[SEGMENTS] = ''
  local waiting = g[WAITING]
  g[WAITING] = 0  -- as if all tasks were added again
  segments.add(g, summaries, common)
  g[WAITING] = waiting
  segments.close(g)
  if policy.min_interval then
    rules[INTERVAL], rules[LEADING] = policy.min_interval, policy.leading or 0
  end
  segments.drop_rules(g)
end

local total_grown, earliest = 0, math.huge

local function apply(group, tasks)
  local g, foreign = read_group(groups, group.key)
  if foreign then return LEFT end
  if not g or g[WAITING] == 0 then return SAME end
  if g[WAITING] > MOST_TASKS or g[BYTES] > MOST_BYTES then return LEFT end
  if g[WAITING] > tasks_left or g[BYTES] > bytes_left then return AGAIN end
  tasks_left, bytes_left = tasks_left - g[WAITING], bytes_left - g[BYTES]
  local entries = redis.pcall('LRANGE', tasks, g[CLAIMED], g[CLAIMED] + g[WAITING] - 1)
  if entries.err or #entries ~= g[WAITING] then return LEFT end
  local common = segments.common_limits(g)
  local merged, differ = new_limits(group, entries, common)
  if not merged then return AGAIN end
  local rules, policy = g[RULES], group.policy
  local interval, leading = 0, 0
  if rules ~= 0 then interval, leading = rules[INTERVAL], rules[LEADING] end
  if policy.min_interval then
    differ = differ or policy.min_interval ~= interval or (policy.leading or 0) ~= leading
  end
  if not differ then return SAME end
  local due_before, old_bytes = due_at(g), total_bytes(entries)
  local summaries, new_bytes = write_entries(tasks, g, entries, merged)
  -- After a large batch was cut, the bytes of the waiting tasks are an estimate.
  summaries[1].bytes = math.max(0, summaries[1].bytes + g[BYTES] - old_bytes)
  g[BYTES] = math.max(0, g[BYTES] + new_bytes - old_bytes)
  total_grown = total_grown + new_bytes - old_bytes
  summarize(g, summaries, merged[1], policy)
  if due_at(g) == 0 then became_due(g, due_before, now) end
  write_group(groups, group.key, g)
  schedule(due, ready, group.key, g, now)
  if g[HELD] == 0 and not is_paused(g) then earliest = math.min(earliest, due_at(g)) end
  return CHANGED
end

local reply = {}
for i = 1, #wanted do reply[i] = apply(wanted[i], KEYS[FIRST_KEY + i - 1]) end
if total_grown ~= 0 then add_count(state, 'bytes', total_grown) end
if earliest < read_count(state, 'wake') then wake_leader(state, channel, partition) end
return reply
