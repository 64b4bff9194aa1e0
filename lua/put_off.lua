-- put_off: has groups that are due, and batches in retry, wait for a permit.
--
-- KEYS   1 state  2 groups  3 retry  4 due  5 ready
-- ARGV   1 fencing token
--        then for each item, as `poll` named it: batch id or '', group key, ms until it is named
-- Reply  1

-- @include arguments
-- @include assert_type
-- @include clock
-- @include fence

local state, groups, retry, due, ready = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local token = ARGV[1]
local FIRST_ITEM, ITEM_ARGS = 2, 3
local LONGEST_MS = 2^43
assert_arguments(#KEYS == 5 and (#ARGV - FIRST_ITEM + 1) % ITEM_ARGS == 0)
for at = FIRST_ITEM + 2, #ARGV, ITEM_ARGS do
  assert_arguments(whole_number(ARGV[at]) < LONGEST_MS)
end
local now = clock()
local stale = fence(state, token, now)
if stale then return stale end
assert_type('HLEN', { groups })
assert_type('ZCARD', { retry, due, ready })

for at = FIRST_ITEM, #ARGV, ITEM_ARGS do
  local id, group, until_ms = ARGV[at], ARGV[at + 1], now + tonumber(ARGV[at + 2])
  if id ~= '' then
    redis.call('ZADD', retry, 'XX', until_ms, id)
  elseif redis.call('ZREM', ready, group) == 1 then
    redis.call('ZADD', due, until_ms, group)  -- `poll` then looks at its record
  end
end
return 1
