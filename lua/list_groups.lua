-- list_groups: a page of one index of groups, from a place on. Reads only.
--
-- KEYS   1 index: `ready` or `due`
-- ARGV   1 score of the place, or '' for the start of the index  2 group of the place
--        3 prefix of the groups that are wanted, or ''  4 maximum number of groups in the reply
--        5 maximum number of groups that this call looks at
-- Reply  { number of groups that were looked at, 1 if that was the end of the index,
--        score and group that were looked at last, { group, score, ... } }
--
-- Cost: a binary search for the place, O(log n) times O(log n), then the groups that it looks at.

-- @include arguments
-- @include order

local index = KEYS[1]
local score, group, prefix = ARGV[1], ARGV[2], ARGV[3]
local most, looks = whole_number(ARGV[4]), whole_number(ARGV[5])
local from = tonumber(score)
assert_arguments(#KEYS == 1 and #ARGV == 5 and (score == '' or from))
local MOST_LOOKS = 1000
looks = math.min(looks, MOST_LOOKS)

-- The first rank behind the place, whose group may be gone.
local low, high = 0, redis.call('ZCARD', index)
if score == '' then high = 0 end
while low < high do
  local middle = math.floor((low + high) / 2)
  local name, at = unpack(redis.call('ZRANGE', index, middle, middle, 'WITHSCORES'))
  if is_behind(tonumber(at), name, from, group) then high = middle else low = middle + 1 end
end

local found, looked = {}, 0
local page = looks > 0 and redis.call('ZRANGE', index, low, low + looks - 1, 'WITHSCORES') or {}
for i = 1, #page, 2 do
  if #found >= 2 * most then break end
  looked = looked + 1
  group, score = page[i], page[i + 1]
  if string.sub(group, 1, #prefix) == prefix then
    found[#found + 1] = group
    found[#found + 1] = score
  end
end
local ended = 2 * looked == #page and looked < looks
return { looked, ended and 1 or 0, score, group, found }
