-- A group: the record in the hash `groups`, a msgpack array with these places.
local WAITING  = 1   -- tasks that no batch holds yet
local CLAIMED  = 2   -- tasks at the head of the list that batches hold
local BASE     = 3   -- absolute number of the task at the head of the list
local FIRST    = 4   -- arrival of the oldest waiting task, ms
local LAST     = 5   -- arrival of the newest waiting task, ms
local DEADLINE = 6   -- when the oldest waiting task has waited its max delay, ms
local GRACE    = 7   -- grace period that the newest task asked for, ms
local DELAY    = 8   -- shortest max delay that a waiting task asked for, ms
local SIZE     = 9   -- smallest max size that a waiting task asked for
local PRIORITY = 10  -- highest priority that a waiting task asked for
local FLUSH    = 11  -- how many of the waiting tasks have been told to go at once
local HELD     = 12  -- batches of this group that wait for a retry and hold it back
local HELD_AT  = 13  -- absolute number of the first task that they hold, or of one before it
local UNTIL    = 14  -- when the last of them may be claimed again, ms
local BYTES    = 15  -- length of all entries that wait

-- The score in `ready` sorts by priority first, then by due time: 2^42 ms is in the year 2109,
-- and priorities from -1000 to 1000 keep the sum exact in a double.
local PRIORITY_STEP = 4398046511104

-- The record of a group that has no task yet.
local function new_group() return { 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0 } end

-- The record, nil if there is none, or nil and true for foreign bytes.
local function read_group(groups, group)
  local g, foreign = read_record(groups, group, BYTES)
  if not g then return nil, foreign end
  if type(g[WAITING]) ~= 'number' or type(g[BYTES]) ~= 'number' then return nil, true end
  return g
end

-- When the group is due, ms; 0: now, whatever the time.
local function due_at(g)
  if g[WAITING] >= g[SIZE] or g[FLUSH] > 0 then return 0 end
  return math.min(g[LAST] + g[GRACE], g[DEADLINE])
end

local function ready_score(g)
  return string.format('%.0f', due_at(g) - g[PRIORITY] * PRIORITY_STEP)
end

-- Puts the group where its state says: into `ready`, into `due`, or into neither.
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

-- Stores the record, or forgets a group that has no task left.
local function write_group(groups, group, g)
  if g[WAITING] + g[CLAIMED] == 0 then
    redis.call('HDEL', groups, group)
  else
    redis.call('HSET', groups, group, cmsgpack.pack(g))
  end
end
