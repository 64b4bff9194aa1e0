-- @include entry
-- @include group
-- @include limits
-- @include rules

-- Summaries of the waiting tasks of a group that do not all have the same limits: of segments,
-- which are runs of tasks in the order of the list. So the limits of a group can be those of the
-- tasks that wait, whatever was cut or cancelled, and a batch can be cut by bytes and weight, with
-- a look at a bounded number of tasks.
--
-- As long as a group has few segments, each holds tasks of the same limits. Else a segment holds up
-- to FEW_TASKS tasks of any limits; they are read when some of them leave. Segments beyond
-- MOST_SEGMENTS are joined with a neighbour. What is left of a segment that is too large to be read
-- keeps the limits of the whole, the strictest of its tasks.
local segments = { entries_read = 0 }  -- tasks and summaries that this call has looked at

-- Defines these functions. Most calls of scripts need none of them.
local function use_segments()
  if segments.combine then return end
  local SEGMENT = '>I4I7I7I7I6I6I7I4I2I7I7I7I1'
  local FEW_SEGMENTS, MOST_SEGMENTS, KEPT_SEGMENTS = 16, 64, 48
  local FEW_TASKS, FEW_BYTES = 256, 64 * 1024
  local READ_TASKS, READ_BYTES = 500, 512 * 1024  -- most that is read of a segment at once, about
  local MOST_REPLACED = 1000  -- tasks that one call reads for those that it replaces, about
  local MIXED, WEIGHTED = 1, 2  -- flags: of different limits; of other weights than 1
  local LARGEST_SUM = 2^53

  -- Whether tasks with these limits need no distinction: all but their weights is the same.
  local function are_same(a, b)
    return a.grace == b.grace and a.delay == b.delay and a.size == b.size
      and a.priority == b.priority and a.max_bytes == b.max_bytes and a.max_weight == b.max_weight
      and a.due == b.due and a.not_before == b.not_before
  end

  local function span_text(ms) return ms >= NEVER and '-' or string.format('%.0f', ms) end

  -- The text of limits that an entry stores, with the weight of its task.
  local function limits_text(limits, weight)
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

  local function unpack_segment(text, at)
    local count, bytes, weight, deadline, due, not_before, delay, size, priority, max_bytes,
      max_weight, grace, flags = struct.unpack(SEGMENT, text, at)
    return {
      count = count, bytes = bytes, weight = weight, deadline = deadline, due = due,
      not_before = not_before, delay = delay, size = size, priority = priority - HIGHEST_PRIORITY,
      max_bytes = max_bytes, max_weight = max_weight, grace = grace,
      mixed = flags % 2 == MIXED, weighted = flags >= WEIGHTED,
    }
  end

  local function pack_segment(s)
    return struct.pack(SEGMENT, s.count, s.bytes, s.weight, s.deadline, s.due, s.not_before,
      s.delay, s.size, s.priority + HIGHEST_PRIORITY, s.max_bytes, s.max_weight, s.grace,
      (s.mixed and MIXED or 0) + (s.weighted and WEIGHTED or 0))
  end

  local function unpack_segments(text)
    local list = {}
    for at = 1, #text, SEGMENT_BYTES do list[#list + 1] = unpack_segment(text, at) end
    return list
  end

  local function pack_segments(list)
    local packed = {}
    for i = 1, #list do packed[i] = pack_segment(list[i]) end
    return table.concat(packed)
  end

  -- The summary of `count` tasks with these limits, the first of which arrived at this time.
  function segments.summary(limits, count, bytes, weight, arrival)
    return {
      count = count, bytes = bytes, weight = weight, deadline = arrival + limits.delay,
      due = limits.due, not_before = limits.not_before, delay = limits.delay, size = limits.size,
      priority = limits.priority, max_bytes = limits.max_bytes, max_weight = limits.max_weight,
      grace = limits.grace, mixed = false, weighted = weight ~= count or limits.weight ~= 1,
    }
  end

  -- The smaller of two numbers of which 0 means none.
  local function least(a, b)
    if a == 0 or b ~= 0 and b < a then return b end
    return a
  end

  local function are_alike(a, b) return not a.mixed and not b.mixed and are_same(a, b) end

  -- Joins to a summary that of the tasks behind it.
  local function join(s, behind)
    s.mixed = not are_alike(s, behind)
    s.weighted = s.weighted or behind.weighted
    s.count, s.bytes = s.count + behind.count, s.bytes + behind.bytes
    s.weight = math.min(s.weight + behind.weight, LARGEST_SUM)
    s.deadline, s.delay = math.min(s.deadline, behind.deadline), math.min(s.delay, behind.delay)
    s.due, s.not_before = least(s.due, behind.due), math.max(s.not_before, behind.not_before)
    s.size, s.priority = math.min(s.size, behind.size), math.max(s.priority, behind.priority)
    s.max_bytes = least(s.max_bytes, behind.max_bytes)
    s.max_weight = least(s.max_weight, behind.max_weight)
    s.grace = behind.grace
  end

  -- Joins neighbours until few enough segments are left: first those that lose nothing by it, then
  -- the smallest.
  local function compact(list)
    while #list > KEPT_SEGMENTS do
      local best, lowest = 1, math.huge
      for i = 1, #list - 1 do
        local s, behind = list[i], list[i + 1]
        local cost = (s.count + behind.count) * FEW_BYTES / FEW_TASKS + s.bytes + behind.bytes
        if s.max_bytes + s.max_weight == 0 and are_alike(s, behind) then cost = 0 end
        if cost < lowest then best, lowest = i, cost end
      end
      join(list[best], table.remove(list, best + 1))
    end
  end

  -- Whether tasks may be put into one segment with those before them.
  local function fits(s, behind, number)
    local few = s.count + behind.count <= FEW_TASKS and s.bytes + behind.bytes <= FEW_BYTES
    if are_alike(s, behind) then return few or s.max_bytes + s.max_weight == 0 end
    return few and number > FEW_SEGMENTS
  end

  -- Ends the distinction of waiting tasks, if nothing that the array is for is in force.
  function segments.drop_rules(g)
    local rules = g[RULES]
    if rules == 0 or rules[SEGMENTS] ~= '' or rules[PAUSED] > 0 then return end
    for place = MAX_BYTES, LEADING do
      if rules[place] > 0 then return end
    end
    g[RULES] = 0
  end

  -- Sets the limits of the group to those of the segments: of what waits.
  function segments.combine(g, list, now)
    local rules = g[RULES]
    local all = list[1]
    if not all then
      rules[SEGMENTS] = ''
      return
    end
    local packed = pack_segments(list)
    for i = 2, #list do join(all, list[i]) end
    g[DELAY], g[SIZE], g[PRIORITY], g[GRACE] = all.delay, all.size, all.priority, all.grace
    g[DEADLINE] = math.min(all.deadline, now + all.delay)
    rules[WEIGHT], rules[MAX_BYTES], rules[MAX_WEIGHT] = all.weight, all.max_bytes, all.max_weight
    rules[DUE], rules[NOT_BEFORE] = all.due, all.not_before
    if all.mixed or all.weighted or all.max_bytes + all.max_weight > 0 then
      rules[SEGMENTS] = packed
      return
    end
    -- The tasks have no different limits any more. Those that store no limits have the same ones.
    rules[COMMON], rules[SEGMENTS] = limits_text(all, 1), ''
    segments.drop_rules(g)
  end

  -- The limits that the waiting tasks have in common: those of the entries that store none.
  function segments.common_limits(g)
    local rules = g[RULES]
    local limits = rules ~= 0 and parse_limits(rules[COMMON])
    if limits then return limits end
    return {
      grace = g[GRACE], delay = g[DELAY], size = g[SIZE], priority = g[PRIORITY], max_bytes = 0,
      max_weight = 0, due = 0, not_before = 0, weight = 1,
    }
  end

  -- The limits of an entry. Bytes that are no entry have those in common.
  local function limits_of(entry, common)
    local text = entry_limits(entry)
    if not text then return common, 1 end
    local weight = string.match(text, '^=;weight=(%d+)$')
    if weight then return common, tonumber(weight) end
    local limits = parse_limits(text)
    if limits then return limits, limits.weight end
    return common, 1
  end

  segments.limits_of = limits_of

  -- What an entry stores of the limits of its task. `common`: those of entries that store none.
  function segments.stored_limits(limits, common)
    if not are_same(limits, common) then
      return limits.text or limits_text(limits, limits.weight)
    end
    return limits.weight == 1 and '' or string.format('=;weight=%.0f', limits.weight)
  end

  -- Begins to distinguish the waiting tasks of a group.
  function segments.use_rules(g)
    if g[RULES] == 0 then
      g[RULES] = {
        g[WAITING], 0, 0, 0, 0, 0, 0, 0, 0, limits_text(segments.common_limits(g), 1), '', '',
        0,
      }
    end
    return g[RULES]
  end

  -- The segments of a group with waiting tasks.
  local function segments_of(g)
    local rules = g[RULES]
    if rules ~= 0 and rules[SEGMENTS] ~= '' then return unpack_segments(rules[SEGMENTS]) end
    local all = segments.summary(segments.common_limits(g), g[WAITING], g[BYTES], g[WAITING], 0)
    all.deadline = g[DEADLINE]
    return { all }
  end

  -- Summaries to which those of new tasks are added. Until `segments.close` they are kept open, for
  -- further sections of the same group.
  local open_segments = {}
  local function opened_segments(g)
    local into = open_segments[g]
    if not into then
      local text = g[RULES][SEGMENTS]
      into = { done = {}, last = nil, number = 0 }
      if text ~= '' then
        into.number = #text / SEGMENT_BYTES
        into.last = unpack_segment(text, #text - SEGMENT_BYTES + 1)
        into.done[1] = string.sub(text, 1, -SEGMENT_BYTES - 1)
      elseif g[WAITING] > 0 then
        into.number, into.last = 1, segments_of(g)[1]
      end
      open_segments[g] = into
    end
    return into
  end

  local function append_segments(into, summaries)
    for i = 1, #summaries do
      local s = summaries[i]
      if into.last and fits(into.last, s, into.number) then
        join(into.last, s)
      else
        if into.last then into.done[#into.done + 1] = pack_segment(into.last) end
        into.last, into.number = s, into.number + 1
      end
      if into.number > MOST_SEGMENTS then
        local list = unpack_segments(table.concat(into.done))
        compact(list)
        into.done, into.number = { pack_segments(list) }, #list + 1
      end
    end
  end

  -- Stores the summaries in the record of the group.
  function segments.close(g)
    local from = open_segments[g]
    if not from then return end
    from.done[#from.done + 1] = pack_segment(from.last)
    g[RULES][SEGMENTS] = table.concat(from.done)
    open_segments[g] = nil
  end

  -- Updates the limits of the group for new tasks, before their number is added to WAITING.
  -- `common`: the limits of entries that store none.
  function segments.add(g, summaries, common)
    local rules = segments.use_rules(g)
    local first = g[WAITING] == 0
    if first then rules[COMMON] = limits_text(common, 1) end
    local differs = rules[SEGMENTS] ~= '' or open_segments[g] ~= nil
    if not differs then
      rules[WEIGHT] = g[WAITING]
      for i = 1, #summaries do
        local s = summaries[i]
        differs = differs or s.weighted or s.max_bytes + s.max_weight > 0
          or not are_same(s, common)
      end
    end
    local into = differs and opened_segments(g)
    for i = 1, #summaries do
      local s = summaries[i]
      if first then
        first = false
        g[DEADLINE], g[DELAY], g[SIZE], g[PRIORITY] = s.deadline, s.delay, s.size, s.priority
        rules[MAX_BYTES], rules[MAX_WEIGHT] = s.max_bytes, s.max_weight
        rules[DUE], rules[NOT_BEFORE] = s.due, s.not_before
      else
        g[DEADLINE], g[DELAY] = math.min(g[DEADLINE], s.deadline), math.min(g[DELAY], s.delay)
        g[SIZE], g[PRIORITY] = math.min(g[SIZE], s.size), math.max(g[PRIORITY], s.priority)
        rules[MAX_BYTES] = least(rules[MAX_BYTES], s.max_bytes)
        rules[MAX_WEIGHT] = least(rules[MAX_WEIGHT], s.max_weight)
        rules[DUE] = least(rules[DUE], s.due)
        rules[NOT_BEFORE] = math.max(rules[NOT_BEFORE], s.not_before)
      end
      rules[WEIGHT] = math.min(rules[WEIGHT] + s.weight, LARGEST_SUM)
      g[GRACE] = s.grace
    end
    if into then append_segments(into, summaries) end
  end

  -- Summarizes waiting tasks from a place among them on. Their bytes are known.
  local function read_segment(g, tasks, from, count, bytes, now)
    local common, s = segments.common_limits(g)
    local entries = redis.call('LRANGE', tasks, g[CLAIMED] + from, g[CLAIMED] + from + count - 1)
    segments.entries_read = segments.entries_read + #entries
    for i = 1, #entries do
      local limits, weight = limits_of(entries[i], common)
      local one = segments.summary(limits, 1, 0, weight, math.min(entry_arrival(entries[i]), now))
      one.weighted = weight ~= 1
      if s then join(s, one) else s = one end
    end
    if s then s.bytes, s.count = bytes, count end
    return s
  end

  -- Updates the summary of a segment that has changed or lost tasks: `from` is its place among the
  -- waiting tasks. Its count, bytes and weight are right already.
  local function refresh_segment(g, tasks, s, from, now)
    if not s.mixed then
      local first = redis.call('LINDEX', tasks, g[CLAIMED] + from) or ''
      s.deadline = math.max(s.deadline, math.min(entry_arrival(first), now) + s.delay)
      return s
    end
    if s.count > FEW_TASKS or s.bytes > READ_BYTES then return s end
    return read_segment(g, tasks, from, s.count, s.bytes, now) or s
  end

  -- How many tasks of a segment a batch takes that has room for so much more: returns their number,
  -- bytes and weight.
  local function part_of_segment(g, tasks, s, from, room)
    local most = math.min(room.count, s.count)
    local capped = room.bytes < math.huge or room.weight < math.huge
    local estimate = math.floor(s.bytes * most / s.count)
    if not capped and (most > READ_TASKS or estimate > READ_BYTES) then
      return most, estimate, s.weighted and math.floor(s.weight * most / s.count) or most
    end
    local first, common = g[CLAIMED] + from, segments.common_limits(g)
    local step = math.max(1, math.floor(FEW_BYTES * s.count / math.max(1, s.bytes)))
    local count, bytes, weight = 0, 0, 0
    most = math.min(most, READ_TASKS)
    while count < most and bytes < READ_BYTES do
      local upto = math.min(count + step, most)
      local some = redis.call('LRANGE', tasks, first + count, first + upto - 1)
      segments.entries_read = segments.entries_read + #some
      for i = 1, #some do
        local length, _, heavy = #some[i], limits_of(some[i], common)
        local fits_in = bytes + length <= room.bytes and weight + heavy <= room.weight
        if not fits_in and (from > 0 or count > 0) then return count, bytes, weight end
        count, bytes, weight = count + 1, bytes + length, weight + heavy
      end
      if count < upto then break end  -- somebody else removed tasks
    end
    return count, bytes, weight
  end

  -- Takes the tasks of the next batch off the summaries: the longest run within the max size, max
  -- bytes and max weight of the group, at least one task. Returns their number, bytes and weight,
  -- and the segments of the others for `combine`.
  function segments.cut(g, tasks, now)
    local rules, list = g[RULES], unpack_segments(g[RULES][SEGMENTS])
    local room = {
      count = g[SIZE],
      bytes = rules[MAX_BYTES] > 0 and rules[MAX_BYTES] or math.huge,
      weight = rules[MAX_WEIGHT] > 0 and rules[MAX_WEIGHT] or math.huge,
    }
    segments.entries_read = segments.entries_read + #list
    local count, bytes, weight, whole = 0, 0, 0, 0
    local function take(n, length, heavy)
      count, bytes, weight = count + n, bytes + length, weight + heavy
      room.count, room.bytes, room.weight =
        room.count - n, room.bytes - length, room.weight - heavy
    end
    for i = 1, #list do
      local s = list[i]
      if s.count > room.count or s.bytes > room.bytes or s.weight > room.weight then break end
      take(s.count, s.bytes, s.weight)
      whole = i
    end
    local left = {}
    for i = whole + 1, #list do left[#left + 1] = list[i] end
    local s = left[1]
    if s and room.count > 0 then
      local n, length, heavy = part_of_segment(g, tasks, s, count, room)
      length, heavy = math.min(length, s.bytes), math.min(heavy, s.weight)
      if n >= s.count then n, length, heavy = s.count, s.bytes, s.weight end
      take(n, length, heavy)
      s.count, s.bytes, s.weight = s.count - n, s.bytes - length, s.weight - heavy
      if s.count == 0 then
        table.remove(left, 1)
      elseif n > 0 then
        left[1] = refresh_segment(g, tasks, s, count, now)
      end
    end
    return count, bytes, weight, left
  end

  -- The index of the segment with the task at this place among the waiting ones, and the place of
  -- its first task.
  local function segment_with(list, from)
    local at, first = 1, 0
    while list[at + 1] and from >= first + list[at].count do
      first, at = first + list[at].count, at + 1
    end
    return at, first
  end

  -- Takes a task that has been cancelled off the summaries of its group, before WAITING is lowered.
  -- `from`: its place among the waiting tasks, from 0. Returns its bytes as they were counted, and
  -- the segments of the others, or nil if the group has none.
  function segments.cancel(tasks, g, entry, from, now)
    local length = #entry
    if g[RULES] == 0 or g[RULES][SEGMENTS] == '' then
      -- After a large batch was cut, the bytes of the waiting tasks are an estimate.
      if g[WAITING] == 1 or length > g[BYTES] then length = g[BYTES] end
      return length, nil
    end
    local list = segments_of(g)
    local at, first = segment_with(list, from)
    local s = list[at]
    if s.count == 1 or length > s.bytes then length = s.bytes end
    local _, weight = limits_of(entry, segments.common_limits(g))
    s.count, s.bytes, s.weight = s.count - 1, s.bytes - length, math.max(0, s.weight - weight)
    if s.count == 0 then
      table.remove(list, at)
    elseif s.mixed or from == first then
      list[at] = refresh_segment(g, tasks, s, first, now)
    end
    return length, list
  end

  -- Takes from a segment, whose tasks have equal limits and no maximum of bytes or weight, the task
  -- at this place: puts the tasks before it, the task, and those behind it in its place.
  local function split_segment(g, tasks, list, at, first, from, one, now)
    local s = table.remove(list, at)
    local function part(place, count)
      if count == 0 then return end
      local each = {}
      for name, value in pairs(s) do each[name] = value end
      each.count, each.bytes = count, math.floor(s.bytes * count / s.count)
      each.weight = s.weighted and math.floor(s.weight * count / s.count) or count
      if place > first then
        local entry = redis.call('LINDEX', tasks, g[CLAIMED] + place) or ''
        each.deadline = math.min(entry_arrival(entry), now) + s.delay
      end
      return each
    end
    local before = part(first, from - first)
    local behind = part(from + 1, first + s.count - from - 1)
    one.bytes = s.bytes - (before and before.bytes or 0) - (behind and behind.bytes or 0)
    for _, each in ipairs({ behind or false, one, before or false }) do
      if each then table.insert(list, at, each) end
    end
    if #list > MOST_SEGMENTS then compact(list) end
  end

  -- Updates the summaries for a task that has been replaced: `from` is its place among the waiting
  -- tasks, `limits` are those of the new one. Returns the bytes by which those of the group grow.
  function segments.replace(tasks, g, old, new, limits, from, now)
    local common = segments.common_limits(g)
    local rules = g[RULES]
    local grown = math.max(#new - #old, -g[BYTES])
    local has_segments = rules ~= 0 and (rules[SEGMENTS] ~= '' or open_segments[g])
    if not has_segments and are_same(limits, common) and limits.weight == 1 then
      return grown
    end
    segments.close(g)
    segments.use_rules(g)
    local list = segments_of(g)
    local at, first = segment_with(list, from)
    local s = list[at]
    local old_limits, old_weight = limits_of(old, common)
    local arrival = math.min(entry_arrival(old), now)
    local one = segments.summary(limits, 1, 0, limits.weight, arrival)
    grown = math.max(#new - #old, -s.bytes)
    s.weight = math.max(0, s.weight - old_weight) + limits.weight
    s.weighted = s.weighted or limits.weight ~= 1
    s.bytes = s.bytes + grown
    if s.mixed or not are_same(s, limits) then
      local few = s.count <= FEW_TASKS and s.bytes <= READ_BYTES
      if few and segments.entries_read < MOST_REPLACED then
        list[at] = read_segment(g, tasks, first, s.count, s.bytes, now) or s
      elseif not s.mixed and s.max_bytes + s.max_weight == 0 and are_same(s, old_limits) then
        s.weight = s.weight - limits.weight + old_weight
        split_segment(g, tasks, list, at, first, from, one, now)
      else
        local count, weight = s.count, s.weight
        join(s, one)
        s.count, s.weight, s.mixed = count, weight, true
      end
    end
    segments.combine(g, list, now)
    return grown
  end
end
