-- @include record
-- @include rules

-- A group: the record in the hash `groups`, a msgpack array with these places.
local WAITING    = 1   -- number of tasks that no batch holds yet
local CLAIMED    = 2   -- number of tasks at the head of the list that batches hold
local BASE       = 3   -- absolute number of the task at the head of the list
local FIRST      = 4   -- arrival of the oldest waiting task, ms
local LAST       = 5   -- arrival of the newest waiting task, ms
local DEADLINE   = 6   -- end of the oldest waiting task's max delay, ms
local GRACE      = 7   -- grace period of the newest task, ms
local DELAY      = 8   -- shortest max delay among the waiting tasks, ms
local SIZE       = 9   -- smallest max size among the waiting tasks
local PRIORITY   = 10  -- highest priority among the waiting tasks
local MARKED     = 11  -- number of waiting tasks, from the oldest on, that a flush made due
local HELD       = 12  -- number of batches in `retry` and `suspects`; above 0, no batch is cut
local HELD_FROM  = 13  -- absolute number of the first task of those batches, or of one before it
local HELD_UNTIL = 14  -- when the last of those batches may be claimed again, ms
local BYTES      = 15  -- bytes of the waiting entries
local SINCE      = 16  -- when it became full or was flushed, or when the last batch was cut, ms
local IDS_FROM   = 17  -- absolute number of the first task whose id may be among the waiting ids
local CANCELLED  = 18  -- number of tasks that were cancelled since a task waits
local RULES      = 19  -- 0 if the waiting tasks have nothing but one and the same grace period, max
                       -- delay, max size and priority; else an array: includes/rules.lua

-- The score in `ready` sorts by priority first, then by the moment at which the group became due. A
-- group that stays due after a batch was cut became due at the cut: so the groups take turns. 2^42
-- ms is in the year 2109, and with priorities from -1000 to 1000 a double holds the sum exactly.
local PRIORITY_STEP = 4398046511104

-- The record of a group without tasks.
local function new_group()
  return { 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
end

local GROUP_HEADER = '\220\0\19'  -- an array of RULES places
local function decode_group(packed)
  local g = unpack_record(packed, GROUP_HEADER, RULES)
  assert_whole(g, WAITING, CANCELLED)
  if g[RULES] ~= 0 then assert_rules(g[RULES]) end
  return g
end

-- Returns the record; nil if there is none; nil and true for foreign bytes.
local function read_group(groups, group) return read_record(groups, group, decode_group) end

-- The number that the next task gets: its value among the waiting ids. The numbers of the waiting
-- tasks rise along the list. The place of a task is its number less BASE, less the number of tasks
-- before it that were cancelled.
local function next_number(g) return g[BASE] + g[CLAIMED] + g[WAITING] + g[CANCELLED] end

-- Whether the waiting tasks reach a maximum of a batch, so that they are due at once.
local function is_full(g)
  local rules = g[RULES]
  return g[WAITING] >= g[SIZE] or rules ~= 0
    and (rules[MAX_BYTES] > 0 and g[BYTES] >= rules[MAX_BYTES]
      or rules[MAX_WEIGHT] > 0 and rules[WEIGHT] >= rules[MAX_WEIGHT])
end

-- Until when the group is not cut, ms, whatever waits. A flush ignores that.
local function held_back_until(g)
  local rules = g[RULES]
  if rules == 0 or g[MARKED] > 0 then return 0 end
  return math.max(rules[NOT_BEFORE], rules[POSTPONED], rules[COOL_UNTIL])
end

-- When the group is due, ms. 0: at once.
local function due_at(g)
  if g[MARKED] > 0 then return 0 end
  local rules = g[RULES]
  if rules == 0 then
    if g[WAITING] >= g[SIZE] then return 0 end
    return math.min(g[LAST] + g[GRACE], g[DEADLINE])
  end
  local at = math.min(g[LAST] + g[GRACE], g[DEADLINE])
  if rules[DUE] > 0 then at = math.min(at, math.floor(rules[DUE] / 2)) end
  if rules[LEADING] > 0 or is_full(g) then at = 0 end
  return math.max(at, held_back_until(g))
end

-- Why the group is due and since when, for the record of the batch that is cut from it. If no time
-- has come, it was due by a grace period before later tasks came, and stays due.
local function reason_of(g, now)
  local rules, grace_end = g[RULES], g[LAST] + g[GRACE]
  if rules == 0 then
    if g[MARKED] > 0 then return 'flush', g[SINCE] end
    if g[WAITING] >= g[SIZE] then return 'size', g[SINCE] end
    if g[DEADLINE] <= math.min(grace_end, now) then return 'max_delay', g[DEADLINE] end
    return 'grace', math.min(grace_end, now)
  end
  local due = due_at(g)
  due = due == 0 and g[SINCE] or math.min(due, now)
  if g[MARKED] > 0 then return 'flush', due end
  if g[WAITING] >= g[SIZE] then return 'size', due end
  if rules[MAX_BYTES] > 0 and g[BYTES] >= rules[MAX_BYTES] then return 'bytes', due end
  if rules[MAX_WEIGHT] > 0 and rules[WEIGHT] >= rules[MAX_WEIGHT] then return 'weight', due end
  if rules[LEADING] > 0 then return 'leading', due end
  if rules[DUE] > 0 and rules[DUE] / 2 <= math.min(grace_end, g[DEADLINE], now) + 0.5 then
    return rules[DUE] % 2 == 1 and 'schedule' or 'due_at', due
  end
  return g[DEADLINE] <= math.min(grace_end, now) and 'max_delay' or 'grace', due
end

-- Notes when a group became due that is full or was flushed. `due_before`: when it was due before.
local function became_due(g, due_before, now)
  if due_before > 0 then g[SINCE] = math.max(g[SINCE], math.min(due_before, now)) end
end

-- Whether the record says when the next batch may be cut.
local function is_cooling(g) return g[RULES] ~= 0 and g[RULES][COOL_UNTIL] > 0 end

-- Whether an operator has paused the group.
local function is_paused(g) return g[RULES] ~= 0 and g[RULES][PAUSED] > 0 end

-- Whether the record has to stay without tasks.
local function stays(g)
  local rules = g[RULES]
  return rules ~= 0 and (rules[COOL_UNTIL] > 0 or rules[PAUSED] > 0)
end

-- Ends what holds for the waiting tasks of a group, when none waits any more.
local function no_task_waits(g)
  g[MARKED], g[CANCELLED] = 0, 0
  if stays(g) then
    local rules = g[RULES]
    for place = WEIGHT, POSTPONED do rules[place] = 0 end
    rules[COMMON], rules[SEGMENTS] = '', ''
  else
    g[RULES] = 0
  end
end

-- When `poll` looks at a group in `due`.
local function next_look(g)
  if g[WAITING] == 0 and is_cooling(g) then return g[RULES][COOL_UNTIL] end
  return due_at(g)
end

local function ready_score(g)
  return string.format('%.0f', math.max(due_at(g), g[SINCE]) - g[PRIORITY] * PRIORITY_STEP)
end

-- The scores of the group in `due` and in `ready`; nil for an index in which it does not belong.
local function scores_of(g, now)
  if g[WAITING] == 0 or g[HELD] > 0 or g[RULES] ~= 0 and is_paused(g) then
    if g[WAITING] == 0 and is_cooling(g) then
      return g[RULES][COOL_UNTIL]  -- `poll` then removes the record
    end
    return nil
  end
  local at = due_at(g)
  if at <= now then return nil, ready_score(g) end
  return at
end

-- Puts the group into the index of its state: `ready`, `due` or neither. The arguments have no
-- names because a table of them for each group costs time.
local function schedule(due, ready, group, g, now)
  local due_score, score = scores_of(g, now)
  if due_score then redis.call('ZADD', due, due_score, group) end
  if score then
    redis.call('ZADD', ready, score, group)
  else
    redis.call('ZREM', ready, group)
  end
  if not due_score then redis.call('ZREM', due, group) end
end

-- Whether nothing is left of the group that its record would have to say.
local function is_over(g) return g[WAITING] + g[CLAIMED] == 0 and not stays(g) end

-- Stores the record, or removes that of a group without tasks.
local function write_group(groups, group, g)
  if is_over(g) then
    redis.call('HDEL', groups, group)
  else
    redis.call('HSET', groups, group, cmsgpack.pack(g))
  end
end
