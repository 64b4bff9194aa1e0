-- rank_groups: looks at a slice of the groups, in no order, and returns some of them. Reads only.
--
-- KEYS   1 groups
-- ARGV   1 cursor of HSCAN, 0 for the first slice  2 number of groups in the slice, about
--        3 pattern of HSCAN for the groups that are wanted
--        4 order: 'size' for the most waiting tasks first, 'age' for the oldest waiting task first,
--          'unindexed' for all groups that are in no index, in no order
--        5, 6 rank and group of a place: only groups behind it are wanted; or ''
--        7, 8 rank and group of a place: only groups before it are wanted; or ''
-- Reply  { cursor of the next slice, 0 after the last one, number and bytes of the records that
--        match the pattern, { group, rank, record, ... } }
--        A lower rank comes first: the number of waiting tasks with a minus, or the arrival of the
--        oldest one, ms

-- @include arguments
-- @include group
-- @include order

local groups = KEYS[1]
local cursor, count, pattern, order = ARGV[1], whole_number(ARGV[2]), ARGV[3], ARGV[4]
local after, after_group = tonumber(ARGV[5]), ARGV[6]
local before, before_group = tonumber(ARGV[7]), ARGV[8]
local NEVER = 2^53
local MOST_COUNT = 1000
assert_arguments(#KEYS == 1 and #ARGV == 8
  and (order == 'size' or order == 'age' or order == 'unindexed'))
count = math.max(1, math.min(count, MOST_COUNT))

local function rank_of(g)
  if order == 'unindexed' then
    local is_indexed = g[HELD] == 0 and not is_paused(g)
    if g[WAITING] == 0 then is_indexed = is_cooling(g) end
    return is_indexed and math.huge or 0
  end
  if order == 'size' then return -g[WAITING] end
  return g[WAITING] > 0 and g[FIRST] or NEVER
end

local following, page = unpack(
  redis.call('HSCAN', groups, cursor, 'MATCH', pattern, 'COUNT', count))
local reply, bytes = {}, 0
for i = 1, #page, 2 do
  local name, packed = page[i], page[i + 1]
  bytes = bytes + #packed
  local decoded, g = pcall(decode_group, packed)
  local rank = decoded and rank_of(g) or math.huge
  if rank < math.huge and (not after or is_behind(rank, name, after, after_group))
    and (not before or is_behind(before, before_group, rank, name)) then
    reply[#reply + 1] = name
    reply[#reply + 1] = string.format('%.0f', rank)
    reply[#reply + 1] = packed
  end
end
return { following, #page / 2, bytes, reply }
