-- put_off: has groups that are due, and batches that can be claimed, wait for a permit. A batch
-- that was freed, or whose claim ran out, is put into retry, so that it holds its group until then.
-- A suspect is put behind the others.
--
-- KEYS   1 state  2 groups  3 batches  4 claims  5 retry  6 suspects  7 due  8 ready
-- ARGV   1 fencing token
--        then for each item, as `poll` named it: batch id or '', group key, ms until it is named
-- Reply  1

-- @include arguments
-- @include assert_type
-- @include batch
-- @include clock
-- @include fence
-- @include group

local state, groups, batches = KEYS[1], KEYS[2], KEYS[3]
local claims, retry, suspects, due, ready = KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local INDEXES = { groups = groups, claims = claims, retry = retry, due = due, ready = ready }
local token = ARGV[1]
local FIRST_ITEM, ITEM_ARGS = 2, 3
local LONGEST_MS = 2^43
assert_arguments(#KEYS == 8 and (#ARGV - FIRST_ITEM + 1) % ITEM_ARGS == 0)
for at = FIRST_ITEM + 2, #ARGV, ITEM_ARGS do
  assert_arguments(whole_number(ARGV[at]) < LONGEST_MS)
end
local now = clock()
local stale = fence(state, token, now)
if stale then return stale end
assert_type('HLEN', { groups, batches })
assert_type('ZCARD', { claims, retry, suspects, due, ready })

local function put_off_batch(id, until_ms)
  local batch = read_batch(batches, id)
  if not batch then return end  -- `poll` forgets it
  local free_at = tonumber(redis.call('ZSCORE', claims, id))
  if free_at and free_at <= now then
    hold_in_retry(INDEXES, id, batch, read_group(groups, batch[GROUP]), until_ms, now)
  elseif redis.call('ZSCORE', retry, id) then
    redis.call('ZADD', retry, until_ms, id)
  elseif redis.call('ZSCORE', suspects, id) then
    local _, last = unpack(redis.call('ZRANGE', suspects, -1, -1, 'WITHSCORES'))
    redis.call('ZADD', suspects, string.format('%.0f', tonumber(last) + 1), id)
  end
end

for at = FIRST_ITEM, #ARGV, ITEM_ARGS do
  local id, group, until_ms = ARGV[at], ARGV[at + 1], now + tonumber(ARGV[at + 2])
  if id ~= '' then
    put_off_batch(id, until_ms)
  elseif redis.call('ZREM', ready, group) == 1 then
    redis.call('ZADD', due, until_ms, group)  -- `poll` then looks at its record
  end
end
return 1
