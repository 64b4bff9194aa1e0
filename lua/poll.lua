-- poll: names what a leader can claim now, and says when to poll again.
--
-- KEYS   1 state  2 groups  3 batches  4 claims  5 retry  6 suspects  7 due  8 ready  9 seen
--        10 seen_before
-- ARGV   1 fencing token  2 maximum number of items  3 longest sleep, ms
--        then keys of groups to leave out: the leader has enough batches of them
-- Reply  { ms until there is more, { batch id or '', group key, batch id or '', group key, ... },
--        { batch id, group key } or {} }
--        An item with a batch id is a batch that came back: it was freed, its claim ran out, or its
--        retry is due. An item without one is a group from which a batch can be cut. The last part
--        names a suspect, which is to be claimed while no other suspect is in flight.
--        0 ms: there is more now. -1: the namespace is paused.
--
-- Cost: O(log n) for each group whose time in `due` has come; nothing for the others.

-- @include arguments
-- @include assert_type
-- @include batch
-- @include call_chunked
-- @include claims
-- @include clock
-- @include clock_step
-- @include fence
-- @include group
-- @include rules
-- @include seen_sets

local state, groups, batches = KEYS[1], KEYS[2], KEYS[3]
local claims, retry, suspects, due, ready = KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local token, max_items, sleep_ms = ARGV[1], whole_number(ARGV[2]), whole_number(ARGV[3])
local FIRST_SKIPPED = 4
local MAX_PROMOTED = 250  -- groups that one call moves to `ready`
local MAX_DEATHS = 100  -- batches of vanished leaders that one call looks at
local SUSPECT_DEATHS = 2  -- a batch is a suspect when that many leaders in a row vanished with it
assert_arguments(#KEYS == 10 and #ARGV >= 3)
local now = clock()
local stale = fence(state, token, now)
if stale then return stale end
assert_type('HLEN', { groups, batches })
-- As assert_type. What is empty is not looked at again: most polls find nothing.
local size = {}
for _, index in ipairs({ claims, retry, suspects, due, ready }) do
  size[index] = redis.call('ZCARD', index)
end
forget_seen(state, KEYS[9], KEYS[10], now)

local moving = follow_clock(
  { state = state, groups = groups, retry = retry, due = due }, now)

-- Counts that a leader vanished while it held these batches. One of them may have killed it. Most
-- leaders vanish for other reasons, so the first time all are claimed again as they are. Batches
-- with which a second one vanished become suspects, which are claimed one by one; those that saw
-- the fewest leaders vanish come first. If a leader vanishes with a suspect, that was an attempt of
-- it that failed. Returns whether there may be more to count.
local function count_deaths()
  if size[claims] == 0 then return false end
  local ids = redis.call('ZRANGEBYSCORE', claims, DIED, DIED, 'LIMIT', 0, MAX_DEATHS)
  for _, id in ipairs(ids) do
    local batch = read_batch(batches, id)
    local g = batch and read_group(groups, batch[GROUP])
    if batch then
      batch[DEATHS] = batch[DEATHS] + 1
      batch[ATTEMPTS] = batch[ATTEMPTS] + batch[ALONE]
      batch[ALONE] = 0
      redis.call('HSET', batches, id, cmsgpack.pack(batch))
    end
    if g and batch[DEATHS] >= SUSPECT_DEATHS then
      redis.call('ZREM', claims, id)
      redis.call('ZADD', suspects, suspect_score(batch, now), id)
      size[suspects] = size[suspects] + 1
      hold(g, batch, now)
      write_group(groups, batch[GROUP], g)
      schedule(due, ready, batch[GROUP], g, now)
    else
      redis.call('ZADD', claims, FREED, id)
    end
  end
  return #ids == MAX_DEATHS
end

if count_deaths() then  -- before any of these batches is claimed again
  redis.call('HSET', state, 'wake', 0)
  return { 0, {}, {} }
end
if redis.call('HEXISTS', state, 'paused') == 1 then
  redis.call('HSET', state, 'wake', string.format('%.0f', now + sleep_ms))
  return { -1, {}, {} }
end

local items = {}
local function add_item(id, group)
  items[#items + 1] = id
  items[#items + 1] = group
end

local function room() return max_items - #items / 2 end

-- The score of the member with this rank, or infinity if there is none.
local function score_at(index, rank)
  local _, score = unpack(redis.call('ZRANGE', index, rank, rank, 'WITHSCORES'))
  return tonumber(score) or math.huge
end

-- Names batches that came back, before any group: they are older than the waiting tasks of their
-- groups. Returns the score of the first batch that is not named.
local function name_returned(index)
  if size[index] == 0 then return math.huge end
  local first = score_at(index, 0)
  if first > now then return first end
  if room() <= 0 then return now end
  local ids = redis.call('ZRANGEBYSCORE', index, '-inf', now, 'LIMIT', 0, room())
  for _, id in ipairs(ids) do
    local batch = read_batch(batches, id)
    if batch then add_item(id, batch[GROUP]) else redis.call('ZREM', index, id) end
  end
  return score_at(index, #ids)
end

local next_at = math.min(name_returned(claims), name_returned(retry))

-- Returns the first suspect that no earlier batch of its group holds back, or else the first one,
-- which `claim` then puts behind the others.
local function name_suspect()
  local first
  if size[suspects] == 0 then return {} end
  for _, id in ipairs(redis.call('ZRANGE', suspects, 0, MAX_DEATHS - 1)) do
    local batch = read_batch(batches, id)
    local g = batch and read_group(groups, batch[GROUP])
    if not batch then
      redis.call('ZREM', suspects, id)
    elseif not g or not is_paused(g) then
      if g and not is_behind_held(g, batch) then return { id, batch[GROUP] } end
      first = first or { id, batch[GROUP] }
    end
  end
  return first or {}
end

local suspect = name_suspect()

-- The end of the min interval of a group without waiting tasks, or nil if it is over: the record
-- then goes unless a batch needs it.
local function end_of_cooling(group, g)
  local rules = g[RULES]
  if rules[COOL_UNTIL] > now then return rules[COOL_UNTIL] end
  if is_paused(g) then rules[COOL_UNTIL] = 0 else g[RULES] = 0 end
  write_group(groups, group, g)
  return nil
end

-- Groups whose time has come move to `ready`, where priority decides. All of them move before any
-- is named, so that a high priority is seen; MAX_PROMOTED bounds the time that one call takes.
local next_due = score_at(due, 0)
if next_due <= now then
  local names = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, MAX_PROMOTED)
  local done, later = {}, {}
  for _, group in ipairs(names) do
    local g, foreign = read_group(groups, group)
    local group_due = g and g[WAITING] > 0 and g[HELD] == 0
      and (g[RULES] == 0 or not is_paused(g)) and due_at(g)
    if g and g[WAITING] == 0 and is_cooling(g) then group_due = end_of_cooling(group, g) end
    if foreign then group_due = now + sleep_ms end  -- the record may be repaired by then
    if group_due and (foreign or group_due > now) then  -- later tasks have moved the time back
      later[#later + 1] = group_due
      later[#later + 1] = group
    else
      if group_due then redis.call('ZADD', ready, 'LT', ready_score(g), group) end
      done[#done + 1] = group
    end
  end
  call_chunked('ZREM', due, done)
  call_chunked('ZADD', due, later)
  next_due = score_at(due, 0)
end
next_at = math.min(next_at, next_due)

if room() > 0 and next_due > now then
  local skipped = {}
  for at = FIRST_SKIPPED, #ARGV do skipped[ARGV[at]] = true end
  local place = #items
  local last = room() + #ARGV - FIRST_SKIPPED  -- so many groups that enough are left
  for _, group in ipairs(redis.call('ZRANGE', ready, 0, last)) do
    if place >= 2 * max_items then break end
    if not skipped[group] then
      items[place + 1], items[place + 2] = '', group
      place = place + 2
    end
  end
end

-- A leader that got items polls again when it has dealt with them: nobody needs to wake it.
if #items > 0 or next_at <= now or moving then
  redis.call('HSET', state, 'wake', 0)
  return { 0, items, suspect }
end
next_at = math.min(next_at, now + sleep_ms)
redis.call('HSET', state, 'wake', string.format('%.0f', next_at))
return { next_at - now, items, suspect }
