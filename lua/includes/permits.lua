-- @include arguments
-- @include call_chunked
-- @include full_memory

-- The permits of one limit: of a namespace or of a group. A hash with these fields, whose values
-- are whole numbers with one space between, but for `tat`:
--   p:ID      GRANTED BEGIN_BY ENDS UNITS: a permit. Its call may begin until BEGIN_BY, and is over
--             at ENDS, ms. UNITS are those of a call that may still begin; 0 after it was noted
--   u:MS      units of calls that leave the window at MS
--   tat       the theoretical arrival time of GCRA, ms
--   w:CALLER  SINCE UNTIL COUNT UNITS: what a caller waits for. It asks again before UNTIL, so
--             that one that is gone is not waited for
--
-- Three rules, each of which can be off:
--
-- 1. No more than `concurrency` permits exist. A permit exists until it is given back, or ENDS.
-- 2. No window of `per` ms holds more than `limit` units of calls. A call is made after its permit
--    was granted, and before it is noted or BEGIN_BY. The units count from the grant until `per`
--    after the note. Let x be the call of a window that was granted last. Every other call of the
--    window was granted before x, and was noted at most `per` before the grant of x, so its units
--    counted when x was granted. Units leave together, a hundred times a window, never early.
-- 3. Of these, `burst` units may begin at once, and others as they come back, `limit` in `per` ms:
--    the generic cell rate algorithm, as virtual scheduling (ITU-T I.371, annex A; ATM Forum
--    traffic management 4.0, 4.4.2).
--
-- Callers take turns: who has waited longer and asks again in time goes first.
local permits = {}
local BUCKETS = 100  -- how often units leave in a window
local TTL_SLACK_MS = 60000
local MOST_HELD = 1500  -- permits of a limit, so that a call looks at few

-- The whole numbers that a pattern finds in a text, or nil.
local FOUR = '^(%d+) (%d+) (%d+) (%d+)$'
local function numbers_in(text, pattern)
  local numbers = { string.match(text, pattern) }
  for i = 1, #numbers do
    numbers[i] = tonumber(numbers[i])
    if numbers[i] > LARGEST_ARGUMENT then return nil end
  end
  return #numbers > 0 and numbers or nil
end

local function as_text(numbers)
  local words = {}
  for i = 1, #numbers do words[i] = string.format('%.0f', numbers[i]) end
  return table.concat(words, ' ')
end

-- When units of a call leave the window that was made before `at`, ms.
local function leaves_at(rule, at)
  local step = math.max(1, math.floor(rule.per / BUCKETS))
  return math.ceil((at + 1 + rule.per) / step) * step
end

local function set(l, field, value)
  l.changes[field] = value
end

local function count_used(l, at, units)
  local leaves = leaves_at(l.rule, at)
  if units == 0 or leaves <= l.now then return end
  l.leaving[leaves] = (l.leaving[leaves] or 0) + units
  l.used = l.used + units
  l.counted[leaves] = true  -- stored at the end: a field that is not read yet may be part of it
end

local function remove_permit(l, id)
  l.held = l.held - 1
  l.reserved = l.reserved - l.permits[id][4]
  l.permits[id] = nil
  set(l, 'p:' .. id, false)
end

-- Counts the units of a permit as those of a call that was made before `at`.
local function note_call(l, id, units, at)
  local p = l.permits[id]
  if p[4] == 0 then return end
  count_used(l, at, math.min(units or p[4], p[4]))
  l.reserved, p[4] = l.reserved - p[4], 0
  set(l, 'p:' .. id, as_text(p))
end

-- A permit of before the clock was set back lasts as long as it was granted for.
local function put_permit(l, id, p)
  if p[1] > l.now then
    local step = p[1] - l.now
    p[1], p[2], p[3] = l.now, p[2] - step, p[3] - step
    set(l, 'p:' .. id, as_text(p))
  end
  l.permits[id] = p
  l.held, l.reserved = l.held + 1, l.reserved + p[4]
  if p[2] <= l.now then note_call(l, id, nil, p[2]) end
  if p[3] <= l.now then remove_permit(l, id) end
end

-- Reads the permits of a limit. What is over is left out; bytes that are no field are removed.
-- `rule`: concurrency, limit, per, burst, begin_ms, hold_ms; 0 for a rule that is off.
function permits.read(key, rule, caller, now)
  local l = {
    key = key, rule = rule, caller = caller, now = now, permits = {}, held = 0, reserved = 0,
    leaving = {}, counted = {}, used = 0, tat = 0, waits = {}, changes = {}, freed = false,
  }
  local stored = redis.call('HGETALL', key)
  local latest = leaves_at(rule, now)
  for i = 1, #stored, 2 do
    local field, value = stored[i], stored[i + 1]
    local kind, name = string.match(field, '^(%a+):?(.*)$')
    local p = kind == 'p' and numbers_in(value, FOUR)
    local wait = kind == 'w' and numbers_in(value, FOUR)
    local units, leaves = kind == 'u' and numbers_in(value, '^(%d+)$'), tonumber(name)
    if p then
      put_permit(l, name, p)
    elseif wait and wait[2] > now and wait[1] <= now then
      l.waits[name] = wait
    elseif units and leaves and leaves > now and leaves <= latest then
      l.leaving[leaves] = (l.leaving[leaves] or 0) + units[1]
      l.used = l.used + units[1]
    elseif units and leaves and leaves > latest then  -- the clock was set back
      set(l, field, false)
      count_used(l, now, units[1])
    elseif kind == 'tat' and numbers_in(value, '^(%d+)%.?%d*$') then
      l.tat = tonumber(value)
      if l.tat > now + rule.per then
        l.tat = now + rule.per
        set(l, field, string.format('%.3f', l.tat))
      end
    else
      set(l, field, false)
    end
  end
  return l
end

-- What those callers wait for who have waited longer: the number of their permits, and the units;
-- and until when the first of them is waited for.
local function waits_ahead(l)
  local own = l.waits[l.caller]
  local count, units, first = 0, 0, math.huge
  for name, wait in pairs(l.waits) do
    if name ~= l.caller and (not own or wait[1] < own[1]
      or wait[1] == own[1] and name < l.caller) then
      count, units, first = count + wait[3], units + wait[4], math.min(first, wait[2])
    end
  end
  return count, units, first
end

-- When so many units can have left the window at the earliest: those of calls that are not noted
-- may be noted now.
local function freed_at(l, lacking)
  local times, units = {}, {}
  local function add(at, number)
    if not units[at] then times[#times + 1] = at end
    units[at] = (units[at] or 0) + number
  end
  for at, number in pairs(l.leaving) do add(at, number) end
  if l.reserved > 0 then add(leaves_at(l.rule, l.now), l.reserved) end
  table.sort(times)
  for _, at in ipairs(times) do
    lacking = lacking - units[at]
    if lacking <= 0 then return at end
  end
  return l.now + l.rule.per
end

-- Returns when a permit for so many units may be granted, ms, and 1 if it is for a place among the
-- concurrent ones that it has to wait; nil if it may be granted now.
local function blocked_until(l, units)
  local rule, now = l.rule, l.now
  local ahead, units_ahead, first = waits_ahead(l)
  local at, by_place = now, 0
  local most = rule.concurrency > 0 and math.min(rule.concurrency, MOST_HELD) or MOST_HELD
  if l.held + ahead >= most then
    for _, p in pairs(l.permits) do first = math.min(first, p[3]) end
    at, by_place = math.min(first, now + math.ceil(rule.begin_ms / 3)), 1
  end
  if rule.limit > 0 then
    local lacking = l.reserved + l.used + units_ahead + units - rule.limit
    if lacking > 0 then at = math.max(at, freed_at(l, lacking)) end
    local interval = rule.per / rule.limit
    local conforms = l.tat + (units_ahead + units - math.max(rule.burst, units)) * interval
    at = math.max(at, math.floor(conforms))
  end
  if at > now then return at, by_place end
end

-- Grants a permit for so many units; returns nil, or as `blocked_until`.
function permits.take(l, id, units)
  if l.permits[id] then return nil end  -- the call is repeated
  local at, by_place = blocked_until(l, units)
  if at then return at, by_place end
  local rule, now = l.rule, l.now
  if rule.limit == 0 then units = 0 end
  local p = { now, now + rule.begin_ms, now + rule.hold_ms, units }
  l.permits[id] = p
  l.held, l.reserved = l.held + 1, l.reserved + units
  set(l, 'p:' .. id, as_text(p))
  if units > 0 then
    l.tat = math.max(l.tat, now) + units * rule.per / rule.limit
    set(l, 'tat', string.format('%.3f', l.tat))
  end
end

-- Notes what became of a permit. `kind`: '=' its call was made; '-' it is over too; '~' it is over
-- without a call. `units`: those of the call, if they are fewer than were granted.
function permits.note(l, kind, id, units)
  local p = l.permits[id]
  if not p then return end
  if kind == '~' then units = 0 end
  local back = p[4] - math.min(units or p[4], p[4])
  l.freed = l.freed or back > 0 or kind ~= '='
  note_call(l, id, units, l.now)
  if back > 0 then
    l.tat = l.tat - back * l.rule.per / math.max(1, l.rule.limit)
    set(l, 'tat', string.format('%.3f', math.max(0, l.tat)))
  end
  if kind ~= '=' then remove_permit(l, id) end
end

-- Notes that the caller waits, or not any more. `granted`: how many permits it got in this call.
function permits.wait(l, granted, count, units, at)
  local field = 'w:' .. l.caller
  local own = l.waits[l.caller]
  if count == 0 then
    l.freed = l.freed or granted == 0 and own ~= nil
    l.waits[l.caller] = nil
    set(l, field, false)
    return
  end
  local since = granted == 0 and own and own[1] or l.now
  local asks_by = math.min(at, l.now + l.rule.begin_ms)
  l.waits[l.caller] = { since, asks_by + math.ceil(l.rule.begin_ms / 3), count, units }
  set(l, field, as_text(l.waits[l.caller]))
end

-- Whether another caller waits for what was given back.
function permits.wakes(l)
  if not l.freed then return false end
  for name in pairs(l.waits) do
    if name ~= l.caller then return true end
  end
  return false
end

-- Stores what has changed. The key expires when nothing in it counts any more.
function permits.write(l)
  for leaves in pairs(l.counted) do
    set(l, 'u:' .. string.format('%.0f', leaves), l.leaving[leaves])
  end
  if next(l.changes) == nil then return end
  local latest = math.max(l.now, math.ceil(l.tat))
  for _, p in pairs(l.permits) do latest = math.max(latest, p[3], leaves_at(l.rule, p[2])) end
  for leaves in pairs(l.leaving) do latest = math.max(latest, leaves) end
  for _, wait in pairs(l.waits) do latest = math.max(latest, wait[2]) end
  local ttl = string.format('%.0f', latest - l.now + TTL_SLACK_MS)
  redis.call('PEXPIRE', l.key, ttl)  -- first: a user without this right writes nothing
  write_in_full_memory(l.key)
  local gone, kept = {}, {}
  for field, value in pairs(l.changes) do
    if value then
      kept[#kept + 1] = field
      kept[#kept + 1] = value
    else
      gone[#gone + 1] = field
    end
  end
  call_chunked('HDEL', l.key, gone)
  call_chunked('HSET', l.key, kept)
  redis.call('PEXPIRE', l.key, ttl)
end
