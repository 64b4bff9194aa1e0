-- The limits of a task, as a producer says them and as an entry stores them: a text
--
--   GRACE DELAY SIZE PRIORITY[ NAME=NUMBER]...[;NAME=NUMBER[ NAME=NUMBER]...]
--
-- GRACE and DELAY are ms, '-' for none. The part before the semicolon is the same for all tasks of
-- a section: its names are max_bytes, max_weight, min_interval (ms) and leading (1). The part
-- behind it is of one task: weight; due_at, schedule and not_before, moments in ms; flush and
-- replace (1). An entry with the limits that its group has in common stores '=;weight=NUMBER'.
local HIGHEST_PRIORITY = 1000
local NEVER = 2^52  -- ms; later than every moment, and exact in a sum with one
local LONGEST_MS = 316224000000  -- ten years
local LARGEST_SIZE = 1000000
local LONGEST_TEXT = 250  -- bytes

-- Returns the limits, or false if the text is malformed or a number is out of range: a producer
-- that means "never" by the largest number it has would leave records that others can't read.
local function read_limits(text)
  if #text > LONGEST_TEXT then return false end
  local shared, own = text, ''
  local _, last, grace, delay, size, priority = string.find(text, '^(%d+) (%d+) (%d+) (-?%d+)')
  if last ~= #text then
    shared, own = string.match(text, '^([^;]*);?(.*)$')
    _, last, grace, delay, size, priority =
      string.find(shared, '^([%d-]+) ([%d-]+) (%d+) (-?%d+)')
    if not last then return false end
  end
  grace = grace == '-' and NEVER or tonumber(grace)
  delay = delay == '-' and NEVER or tonumber(delay)
  size, priority = tonumber(size), tonumber(priority)
  if not grace or not delay or grace < 0 or delay < 0
    or (grace > LONGEST_MS and grace ~= NEVER) or (delay > LONGEST_MS and delay ~= NEVER)
    or size < 1 or size > LARGEST_SIZE
    or priority < -HIGHEST_PRIORITY or priority > HIGHEST_PRIORITY then
    return false
  end
  local limits = {
    grace = grace, delay = delay, size = size, priority = priority, max_bytes = 0, max_weight = 0,
    min_interval = 0, leading = 0, weight = 1, not_before = 0, flush = 0, replace = 0,
    plain = true,
  }
  if last == #shared and own == '' then
    limits.due, limits.text = 0, text
    return limits
  end

  -- Reads the named numbers in a part of the text, each behind a space. Returns whether all are
  -- known and in range.
  local function read_named(part, at, of_section)
    local LARGEST_OF = {
      max_bytes = 2^40, max_weight = 2^50, min_interval = LONGEST_MS, leading = 1,
      weight = 2^31, due_at = 2^43, schedule = 2^43, not_before = 2^43, flush = 1, replace = 1,
    }
    local OF_SECTION = { max_bytes = true, max_weight = true, min_interval = true, leading = true }
    while at <= #part do
      local _, to, name, digits = string.find(part, '^ ([a-z_]+)=(%d+)', at)
      local most, number = LARGEST_OF[name], tonumber(digits)
      if not most or number > most then return false end
      if (OF_SECTION[name] or false) ~= of_section then return false end
      limits[name] = number
      at = to + 1
    end
    return true
  end

  if not read_named(shared, last + 1, true)
    or own ~= '' and not read_named(' ' .. own, 1, false) then
    return false
  end
  -- Twice the moment, and 1 more if a schedule set it.
  limits.due = (limits.due_at or 0) * 2
  if limits.schedule and (limits.due == 0 or limits.schedule * 2 < limits.due) then
    limits.due = limits.schedule * 2 + 1
  end
  limits.plain = false
  if limits.min_interval + limits.leading + limits.flush + limits.replace == 0 then
    limits.text = text  -- as an entry stores it
  end
  return limits
end

-- As `read_limits`. Most sections and tasks have the same limits, so each text is parsed once.
local parsed_limits = {}
local function parse_limits(text)
  local limits = parsed_limits[text]
  if limits == nil then
    limits = read_limits(text)
    parsed_limits[text] = limits
  end
  return limits
end
