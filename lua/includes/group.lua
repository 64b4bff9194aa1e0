-- @include record

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

-- The score in `ready` sorts by priority first, then by the moment at which the group became due. A
-- group that stays due after a batch was cut became due at the cut: so the groups take turns. 2^42
-- ms is in the year 2109, and with priorities from -1000 to 1000 a double holds the sum exactly.
local PRIORITY_STEP = 4398046511104

-- The record of a group without tasks.
local function new_group()
  return { 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
end

-- Returns the record; nil if there is none; nil and true for foreign bytes.
local function read_group(groups, group)
  local g, foreign = read_record(groups, group, CANCELLED)
  if not g then return nil, foreign end
  if not are_whole(g, WAITING, CANCELLED) then return nil, true end
  return g
end

-- The number that the next task gets: its value among the waiting ids. The numbers of the waiting
-- tasks rise along the list. The place of a task is its number less BASE, less the number of tasks
-- before it that were cancelled.
local function next_number(g) return g[BASE] + g[CLAIMED] + g[WAITING] + g[CANCELLED] end

-- When the group is due, ms. 0: at once.
local function due_at(g)
  if g[WAITING] >= g[SIZE] or g[MARKED] > 0 then return 0 end
  return math.min(g[LAST] + g[GRACE], g[DEADLINE])
end

-- Notes when a group became due that is full or was flushed. `due_before`: when it was due before.
local function became_due(g, due_before, now)
  if due_before > 0 then g[SINCE] = math.max(g[SINCE], math.min(due_before, now)) end
end

local function ready_score(g)
  return string.format('%.0f', math.max(due_at(g), g[SINCE]) - g[PRIORITY] * PRIORITY_STEP)
end

-- Puts the group into the index of its state: `ready`, `due` or neither. The arguments have no
-- names because a table of them for each group costs time.
local function schedule(due, ready, group, g, now)
  if g[WAITING] == 0 or g[HELD] > 0 then
    redis.call('ZREM', due, group)
    redis.call('ZREM', ready, group)
  elseif due_at(g) <= now then
    redis.call('ZADD', ready, ready_score(g), group)
    redis.call('ZREM', due, group)
  else
    redis.call('ZADD', due, due_at(g), group)
    redis.call('ZREM', ready, group)
  end
end

-- Stores the record, or removes that of a group without tasks.
local function write_group(groups, group, g)
  if g[WAITING] + g[CLAIMED] == 0 then
    redis.call('HDEL', groups, group)
  else
    redis.call('HSET', groups, group, cmsgpack.pack(g))
  end
end
