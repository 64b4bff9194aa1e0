-- poll: what a leader can claim now, and when it has to look again.
--
-- KEYS  1 state  2 groups  3 batches  4 claims  5 retry  6 due  7 ready
-- ARGV  1 fencing token  2 at most how many items  3 longest sleep, ms
-- Reply { ms until there is more, {batch id or '', group, batch id or '', group, ...} }
--       An item with a batch id is a batch that came back: its claim ran out (its flusher died),
--       or its retry is due. An item without is a group with a batch to be cut.
--       0 ms: there is more now. -1: the namespace is paused.
--
-- Cost: O(log n) for each group that has become due, or would have but for the tasks that came
-- since; nothing for the others.

-- @include clock
-- @include schema
-- @include fence
-- @include record
-- @include group
-- @include batch
-- @include each

local state, groups, batches = KEYS[1], KEYS[2], KEYS[3]
local claims, retry, due, ready = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local now = clock()
local stale = fence(state, ARGV[1], now)
if stale then return stale end
local PROMOTE = 500
local limit, sleep = tonumber(ARGV[2]), tonumber(ARGV[3])

if redis.call('HEXISTS', state, 'paused') == 1 then
  redis.call('HSET', state, 'wake', string.format('%.0f', now + sleep))
  return { -1, {} }
end

local items = {}
local function add_item(id, group)
  items[#items + 1] = id
  items[#items + 1] = group
end

local function room() return limit - #items / 2 end

-- Batches first: they are older than what still waits in their groups. Takes what is due by `now`
-- and returns the score of the first that is not.
local function returned(index)
  local head = redis.call('ZRANGE', index, 0, 0, 'WITHSCORES')
  if not head[1] or tonumber(head[2]) > now then return tonumber(head[2]) or math.huge end
  if room() <= 0 then return now end
  local ids = redis.call('ZRANGEBYSCORE', index, '-inf', now, 'LIMIT', 0, room())
  for _, id in ipairs(ids) do
    local batch = read_batch(batches, id)
    if batch then add_item(id, batch[GROUP]) else redis.call('ZREM', index, id) end
  end
  head = redis.call('ZRANGE', index, #ids, #ids, 'WITHSCORES')
  return tonumber(head[2]) or math.huge
end

local next_at = math.min(returned(claims), returned(retry))

-- Groups whose time has come move to `ready`, where priority decides. All of them do before any
-- is named, so that a high priority is seen; PROMOTE bounds how long one call keeps Redis busy.
local head = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
if head[1] and tonumber(head[2]) <= now then
  local names = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, PROMOTE)
  local done, later = {}, {}
  for _, group in ipairs(names) do
    local g, foreign = read_group(groups, group)
    local at = g and g[WAITING] > 0 and g[HELD] == 0 and due_at(g)
    if foreign then at = now + sleep end  -- perhaps its record is put right by then
    if at and at > now then  -- or tasks have come since the index was told
      later[#later + 1] = at
      later[#later + 1] = group
    else
      if at then redis.call('ZADD', ready, 'LT', ready_score(g), group) end
      done[#done + 1] = group
    end
  end
  each('ZREM', due, done)
  each('ZADD', due, later)
  head = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
end
local next_due = tonumber(head[2]) or math.huge
next_at = math.min(next_at, next_due)

if room() > 0 and next_due > now then
  for _, group in ipairs(redis.call('ZRANGE', ready, 0, room() - 1)) do add_item('', group) end
end

-- A leader that got something looks again when it has dealt with it: nobody needs to wake it.
if #items > 0 or next_at <= now then
  redis.call('HSET', state, 'wake', 0)
  return { 0, items }
end
next_at = math.min(next_at, now + sleep)
redis.call('HSET', state, 'wake', string.format('%.0f', next_at))
return { next_at - now, items }
