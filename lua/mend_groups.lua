-- mend_groups: finds groups that the indexes have lost, or have too much, and mends that.
--
-- KEYS   1 state  2 groups  3 due  4 ready
-- ARGV   1 wake channel  2 partition number  3 '1' to mend, '' to look only
--        then group keys, 100 at most
-- Reply  the groups that were wrong: tasks wait and nothing looks at them, or there is no record
--
-- A group whose record can't be read is left as it is. Safe at any time: the record decides, and
-- whatever changes it brings the indexes up to date in the same script.

-- @include arguments
-- @include assert_type
-- @include clock
-- @include counts
-- @include full_memory
-- @include group
-- @include schema
-- @include wake

local state, groups, due, ready = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local channel, partition, mend = ARGV[1], ARGV[2], ARGV[3] == '1'
local FIRST_GROUP, MOST_GROUPS = 4, 100
assert_arguments(#KEYS == 4 and #ARGV >= 3 and #ARGV - 3 <= MOST_GROUPS)

local refused = refuse_schema(redis.call('HGET', state, 'schema'))
if refused then return refused end
assert_type('HLEN', { groups })
assert_type('ZCARD', { due, ready })
local now = clock()

local function is_wrong(group, g)
  local is_due, is_ready = redis.call('ZSCORE', due, group), redis.call('ZSCORE', ready, group)
  if not g then return is_due or is_ready end
  if is_paused(g) or is_due or is_ready then return false end
  if g[WAITING] > 0 then return g[HELD] == 0 end
  return is_cooling(g)
end

local wrong, earliest = {}, math.huge
if mend then write_in_full_memory(state) end
for at = FIRST_GROUP, #ARGV do
  local group = ARGV[at]
  local g, foreign = read_group(groups, group)
  if not foreign and is_wrong(group, g) then
    wrong[#wrong + 1] = group
    if mend and g then
      schedule(due, ready, group, g, now)
      earliest = math.min(earliest, next_look(g))
    elseif mend then
      redis.call('ZREM', due, group)
      redis.call('ZREM', ready, group)
    end
  end
end
if earliest < read_count(state, 'wake') then wake_leader(state, channel, partition) end
return wrong
