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
local parse_limits, are_same, limits_text = nil
do
  local LONGEST_MS, LARGEST_SIZE = 316224000000, 1000000
  local LONGEST_TEXT = 250  -- bytes
  -- Reads the named numbers in a text, each behind a space. Returns whether all are known and in
  -- range.
  local function read_named(text, at, limits, of_section)
    local LARGEST_OF = {
      max_bytes = 2^40, max_weight = 2^50, min_interval = LONGEST_MS, leading = 1,
      weight = 2^31, due_at = 2^43, schedule = 2^43, not_before = 2^43, flush = 1, replace = 1,
    }
    local OF_SECTION = { max_bytes = true, max_weight = true, min_interval = true, leading = true }
    while at <= #text do
      local _, last, name, digits = string.find(text, '^ ([a-z_]+)=(%d+)', at)
      local most, number = LARGEST_OF[name], tonumber(digits)
      if not most or number > most then return false end
      if (OF_SECTION[name] or false) ~= of_section then return false end
      limits[name] = number
      at = last + 1
    end
    return true
  end

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
    if not read_named(shared, last + 1, limits, true)
      or own ~= '' and not read_named(' ' .. own, 1, limits, false) then
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
  local parsed = {}
  function parse_limits(text)
    local limits = parsed[text]
    if limits == nil then
      limits = read_limits(text)
      parsed[text] = limits
    end
    return limits
  end

  -- Whether tasks with these limits need no distinction: all but their weights is the same.
  function are_same(a, b)
    return a.grace == b.grace and a.delay == b.delay and a.size == b.size
      and a.priority == b.priority and a.max_bytes == b.max_bytes and a.max_weight == b.max_weight
      and a.due == b.due and a.not_before == b.not_before
  end

  local function span_text(ms) return ms >= NEVER and '-' or string.format('%.0f', ms) end

  -- The text of limits that an entry stores, with the weight of its task.
  function limits_text(limits, weight)
    local text = string.format('%s %s %d %d', span_text(limits.grace), span_text(limits.delay),
      limits.size, limits.priority)
    local function append(name, number)
      if number > 0 then text = string.format('%s%s=%.0f', text, name, number) end
    end
    append(' max_bytes', limits.max_bytes)
    append(' max_weight', limits.max_weight)
    local separator = ';'
    local function append_own(name, number)
      if number > 0 then
        append(separator .. name, number)
        separator = ' '
      end
    end
    append_own(limits.due % 2 == 1 and 'schedule' or 'due_at', math.floor(limits.due / 2))
    append_own('not_before', limits.not_before)
    if weight ~= 1 then text = string.format('%s%sweight=%.0f', text, separator, weight) end
    return text
  end
end
