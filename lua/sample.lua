-- sample: the counts of a partition since it was made, and what is late there. Reads only.
--
-- KEYS   1 state  2 groups  3 batches  4 claims  5 retry  6 suspects  7 due  8 ready
-- ARGV   none
-- Reply  { time, ms; tasks added, less those that were cancelled or dropped; tasks flushed; batches
--        flushed; attempts that failed; pending tasks; tasks in dead letters; ms since the first of
--        all due groups and batches in flight was due, or 0 }
--
-- Cost: constant. Of many due groups and batches, the first ones of each index count.

-- @include batch
-- @include clock
-- @include group

local state, groups, batches = KEYS[1], KEYS[2], KEYS[3]
local claims, retry, suspects, due, ready = KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local LOOKS = 20  -- of each index
local PRIORITIES = 8  -- of which the first group that is due is looked for
local LARGEST_NUMBER = 2^53
local now = clock()

local function number(text)
  local value = tonumber(text) or 0
  return value % 1 == 0 and math.abs(value) < LARGEST_NUMBER and value or 0
end
local counts = redis.call('HMGET', state, 'waiting', 'claimed', 'dead', 'flushed_tasks', 'removed',
  'flushed', 'failed', 'wake', 'paused')
local LAST_NUMBER = 8  -- behind it is whether flushing is paused
for i = 1, LAST_NUMBER do counts[i] = number(counts[i]) end
local waiting, claimed, dead, flushed_tasks, removed, flushed, failed, wake = unpack(counts)

local first = now
local function note(at) if at > 0 and at < first then first = at end end

local function note_ready()
  local page = redis.call('ZRANGE', ready, 0, 0, 'WITHSCORES')
  for _ = 1, PRIORITIES do
    local score = tonumber(page[2])
    if not score or math.abs(score) >= LARGEST_NUMBER then return end
    local block = math.floor(score / PRIORITY_STEP)
    note(score - block * PRIORITY_STEP)
    page = redis.call('ZRANGE', ready, string.format('%.0f', (block + 1) * PRIORITY_STEP), '+inf',
      'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
  end
end

-- Groups whose time has come, but no poll yet. The time in the index may be too early.
local function note_due()
  local page = redis.call('ZRANGE', due, 0, LOOKS - 1, 'WITHSCORES')
  for i = 1, #page, 2 do
    if tonumber(page[i + 1]) > now then return end
    local g = read_group(groups, page[i])
    if g and g[WAITING] > 0 then note(math.max(due_at(g), g[SINCE])) end
  end
end

-- A leader that sleeps has found nothing due, unless flushing is paused.
if waiting > 0 and (wake <= now or counts[LAST_NUMBER + 1]) then
  note_ready()
  note_due()
end
if claimed > 0 then
  for _, index in ipairs({ claims, retry, suspects }) do
    for _, id in ipairs(redis.call('ZRANGE', index, 0, LOOKS - 1)) do
      local batch = read_batch(batches, id)
      if batch then note(batch[DUE_AT]) end
    end
  end
end
return {
  now, waiting + claimed + dead + flushed_tasks + removed, flushed_tasks, flushed, failed,
  waiting + claimed, dead, now - first,
}
