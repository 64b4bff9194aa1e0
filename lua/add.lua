-- add: puts tasks into their groups.
--
-- KEYS  1 state  2 groups  3 due  4 ready  5 call (of this producer)  6 seen  7 seen_before
--       then for each section: tasks and ids of its group
-- ARGV  1 call number, growing from call to call of this producer; '' if it never repeats a call
--       2 how long the call is remembered, ms
--       3 wake channel  4 partition number
--       5 how many tasks and 6 bytes of entries may be pending in this partition, 0 for any number
--       7 '1' if ids that were flushed lately are not accepted again, else ''
--       then for each section: group key; limits, four numbers with a space between: grace period
--       ms, max delay ms, max size, priority; number of tasks n; then n times: id, body
-- Reply for each section: how many of its tasks were new (an id that waits already in its group
--       changes nothing), or a string with the error that kept the whole section out: a key of the
--       group holds a foreign type or record, its limits or an id are malformed, or it would
--       make too much pending (FULL). Other errors keep the whole call out, with nothing written.
--
-- A section is a run of tasks for one group that share their limits. A call that is repeated
-- because its reply was lost gets its first reply again, and a call that comes after a later
-- one of the same producer is not carried out: it was given up.

-- @include clock
-- @include schema
-- @include expect
-- @include record
-- @include counts
-- @include group
-- @include each
-- @include entry
-- @include seen
-- @include refused
-- @include wake

local state, groups, due, ready, call = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local seen, seen_before = KEYS[6], KEYS[7]
local SECTION_KEYS, SECTION_ARGS = 8, 8  -- where the first section begins
local number = tonumber(ARGV[1])
if number then
  local remembered = redis.call('GET', call)
  if remembered then
    local last = cmsgpack.unpack(remembered)
    if last[1] == number then
      -- A write that changes nothing: WAIT on this connection is to cover what the first call wrote.
      redis.call('PEXPIRE', call, ARGV[2])
      return last[2]
    end
    if last[1] > number then return redis.error_reply('LATE a later call was made') end
  end
end
expect('ZCARD', { due, ready })
local dedupe = ARGV[7] == '1'
if dedupe then expect('SCARD', { seen, seen_before }) end
local counts = redis.call('HMGET', state, 'waiting', 'claimed', 'bytes', 'wake', 'schema')
local newer = refuse_schema(counts[5])
if newer then return newer end

local args = ARGV
local now = clock()
local earliest = math.huge  -- when the first of the touched groups is due
local total, total_length = 0, 0

-- Backpressure. What is in flight is pending too: it fills Redis until its queue has it.
local most, most_bytes = tonumber(args[5]), tonumber(args[6])
local limited = most > 0 or most_bytes > 0
if most == 0 then most = math.huge end
if most_bytes == 0 then most_bytes = math.huge end
local pending = (tonumber(counts[1]) or 0) + (tonumber(counts[2]) or 0)
local pending_bytes = tonumber(counts[3]) or 0

-- The head of an entry: arrival time and length of the id. Most ids have the same length.
local prefix, heads = entry_prefix(now), {}
local function entry_head(id)
  local head = heads[#id]
  if not head and #id >= 1 and #id <= 128 then
    head = prefix .. string.char(#id)
    heads[#id] = head
  end
  return head
end

-- Most sections have the same limits.
local parsed = {}
local function limits(text)
  local l = parsed[text]
  if not l then
    local grace, delay, size, priority = string.match(text, '^(%d+) (%d+) (%d+) (-?%d+)$')
    l = { tonumber(grace), tonumber(delay), tonumber(size), tonumber(priority) }
    parsed[text] = l
  end
  return l[1], l[2], l[3], l[4]
end

local function seen_lately(group, id)
  if not dedupe then return false end
  local member = seen_member(group, id)
  return redis.call('SISMEMBER', seen, member) == 1
    or redis.call('SISMEMBER', seen_before, member) == 1
end

-- Returns an error if the n tasks from ARGV[at] on are too many. Those that are known make nothing
-- fuller.
local function too_full(group, ids, at, n)
  local tasks, bytes = pending + total, pending_bytes + total_length
  for i = at, at + 2 * n - 2, 2 do
    tasks = tasks + 1
    bytes = bytes + #prefix + 1 + #args[i] + #args[i + 1]
  end
  if tasks <= most and bytes <= most_bytes then return nil end
  for i = at, at + 2 * n - 2, 2 do
    local waits = redis.pcall('HEXISTS', ids, args[i])
    if type(waits) == 'table' then return waits.err end
    if waits == 1 or seen_lately(group, args[i]) then
      tasks = tasks - 1
      bytes = bytes - #prefix - 1 - #args[i] - #args[i + 1]
    end
  end
  if tasks > pending + total and (tasks > most or bytes > most_bytes) then
    return 'FULL too much is pending'
  end
end

-- Adds the section at ARGV[at]; returns how many of its tasks were new, or what kept it out.
-- Numbers are handed to Redis as text throughout: its own conversion takes longer than the command.
local function add_section(tasks, ids, at, n)
  local group = args[at]
  local g, foreign = read_group(groups, group)
  if foreign then return FOREIGN end
  g = g or new_group()
  local number = g[BASE] + g[CLAIMED] + g[WAITING]
  local grace, delay, size, priority = limits(args[at + 1])
  if not priority or size < 1 then return 'ERR limits: GRACE_MS DELAY_MS SIZE PRIORITY' end
  local full = limited and too_full(group, ids, at + 3, n)
  if full then return full end
  local entries, length = {}, 0
  for i = at + 3, at + 1 + 2 * n, 2 do
    local id = args[i]
    local head = entry_head(id)
    if not head then
      forget_ids(ids, entries)
      return 'ERR an id has 1 to 128 bytes'
    end
    -- The first write: what Redis refuses (a foreign type, no memory) it refuses here.
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
  for from = 1, #entries, 4000 do
    local pushed = redis.pcall('RPUSH', tasks, unpack(entries, from, math.min(from + 3999, #entries)))
    if type(pushed) == 'table' then  -- a foreign type: nothing has been pushed
      forget_ids(ids, entries)
      return pushed.err
    end
  end

  local was_full = g[WAITING] > 0 and g[WAITING] >= g[SIZE]
  local was_due = g[WAITING] > 0 and due_at(g)
  if not was_due then
    g[FIRST], g[DEADLINE], g[DELAY], g[SIZE], g[PRIORITY] = now, now + delay, delay, size, priority
  else
    g[DEADLINE] = math.min(g[DEADLINE], now + delay)
    g[DELAY] = math.min(g[DELAY], delay)
    g[SIZE] = math.min(g[SIZE], size)
    g[PRIORITY] = math.max(g[PRIORITY], priority)
  end
  g[LAST], g[GRACE] = now, grace
  g[WAITING] = g[WAITING] + #entries
  g[BYTES] = g[BYTES] + length
  write_group(groups, group, g)
  total = total + #entries
  total_length = total_length + length

  if g[HELD] > 0 then return #entries end
  local due_ms = due_at(g)
  if due_ms > 0 then
    -- What `due` says may be too early, never too late: a task that only moves the time back
    -- leaves it as it is, and `poll` puts it right. A group in `ready` stays there.
    if not was_due or due_ms < was_due then
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
local at = SECTION_ARGS
for key = SECTION_KEYS, #KEYS, 2 do
  local n = tonumber(args[at + 2])
  local status = add_section(KEYS[key], KEYS[key + 1], at, n)
  local refused = type(status) == 'string' and total == 0 and refusal_of_all(status)
  if refused then return refused end
  reply[#reply + 1] = status
  at = at + 3 + 2 * n
end
if total > 0 then
  add_count(state, 'waiting', total)
  add_count(state, 'bytes', total_length)
  wake_leader(state, ARGV[3], ARGV[4], earliest, tonumber(counts[4]) or 0)
end
-- Even if nothing was new: what waits now may be gone when the call is repeated.
if number then
  redis.call('SET', call, cmsgpack.pack({ number, reply }), 'PX', ARGV[2])
end
return reply
