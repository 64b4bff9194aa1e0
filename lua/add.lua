-- add: puts tasks into their groups.
--
-- KEYS  1 state  2 groups  3 due  4 ready  5 call (of this producer)
--       then for each section: tasks and ids of its group
-- ARGV  1 call number, growing from call to call of this producer; '' if it never repeats a call
--       2 how long the call is remembered, ms
--       3 wake channel  4 partition number
--       then for each section: group key; limits, four numbers with a space between: grace period
--       ms, max delay ms, max size, priority; number of tasks n; then n times: id, body
-- Reply for each section: how many of its tasks were new (an id that waits already in its group
--       changes nothing), or a string with the error that kept the whole section out: a key of the
--       group holds a foreign type, or its limits or an id are malformed. Other errors keep the
--       whole call out, with nothing written.
--
-- A section is a run of tasks for one group that share their limits. A call that is repeated
-- because its reply was lost gets its first reply again, and a call that comes after a later
-- one of the same producer is not carried out: it was given up.

-- @include clock
-- @include group
-- @include each
-- @include entry
-- @include refused
-- @include wake

local state, groups, due, ready, call = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
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
redis.call('ZCARD', due)  -- reads that refuse a foreign type before anything is written
redis.call('ZCARD', ready)
local wake = tonumber(redis.call('HGET', state, 'wake') or 0)

local args = ARGV
local now = clock()
local earliest = math.huge  -- when the first of the touched groups is due
local total = 0

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

-- Adds the section at ARGV[at]; returns how many of its tasks were new, or what kept it out.
-- Numbers are handed to Redis as text throughout: its own conversion takes longer than the command.
local function add_section(tasks, ids, at, n)
  local group = args[at]
  local g = read_group(groups, group) or { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
  local number = g[BASE] + g[CLAIMED] + g[WAITING]
  local grace, delay, size, priority = limits(args[at + 1])
  if not priority or size < 1 then return 'ERR limits: GRACE_MS DELAY_MS SIZE PRIORITY' end
  local entries = {}
  for i = at + 3, at + 1 + 2 * n, 2 do
    local id = args[i]
    local head = entry_head(id)
    if not head then
      forget_ids(ids, entries)
      return 'ERR an id has 1 to 128 bytes'
    end
    -- The first write: what Redis refuses (a foreign type, no memory) it refuses here.
    local new = redis.pcall('HSETNX', ids, id, string.format('%d', number + #entries))
    if new == 1 then
      entries[#entries + 1] = head .. id .. args[i + 1]
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
  if g[WAITING] == 0 then
    g[FIRST], g[DEADLINE], g[DELAY], g[SIZE], g[PRIORITY] = now, now + delay, delay, size, priority
  else
    g[DEADLINE] = math.min(g[DEADLINE], now + delay)
    g[DELAY] = math.min(g[DELAY], delay)
    g[SIZE] = math.min(g[SIZE], size)
    g[PRIORITY] = math.max(g[PRIORITY], priority)
  end
  g[LAST], g[GRACE] = now, grace
  g[WAITING] = g[WAITING] + #entries
  write_group(groups, group, g)
  total = total + #entries

  if g[HELD] > 0 then return #entries end
  local due_ms = due_at(g)
  if due_ms > 0 then
    -- A group that is in `ready` already stays due; the claim takes it out of both.
    redis.call('ZADD', due, string.format('%d', due_ms), group)
    earliest = math.min(earliest, due_ms)
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
local at = 5
for section = 1, (#KEYS - 5) / 2 do
  local n = tonumber(args[at + 2])
  local status = add_section(KEYS[4 + 2 * section], KEYS[5 + 2 * section], at, n)
  local refused = type(status) == 'string' and total == 0 and refusal_of_all(status)
  if refused then return refused end
  reply[section] = status
  at = at + 3 + 2 * n
end
if total > 0 then
  redis.call('HINCRBY', state, 'waiting', total)
  wake_leader(state, ARGV[3], ARGV[4], earliest, wake)
end
-- Even if nothing was new: what waits now may be gone when the call is repeated.
if number then
  redis.call('SET', call, cmsgpack.pack({ number, reply }), 'PX', ARGV[2])
end
return reply
