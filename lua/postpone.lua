-- postpone: has no batch cut from the waiting tasks of a group before a moment, unless the group is
-- flushed. It holds until none of them waits or a batch is cut.
--
-- KEYS   1 state  2 groups  3 due  4 ready
-- ARGV   1 wake channel  2 partition number  3 group key  4 the moment, ms; 0 to take it back
-- Reply  number of waiting tasks; 0 if there is no such group

-- @include arguments
-- @include assert_type
-- @include clock
-- @include counts
-- @include full_memory
-- @include group
-- @include rules
-- @include schema
-- @include segments
-- @include wake

local state, groups, due, ready = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local channel, partition, group, moment = ARGV[1], ARGV[2], ARGV[3], whole_number(ARGV[4])
local LAST_MOMENT = 2^43
assert_arguments(#KEYS == 4 and #ARGV == 4 and moment <= LAST_MOMENT)

local refused = refuse_schema(redis.call('HGET', state, 'schema'))
if refused then return refused end
assert_type('ZCARD', { due, ready })
write_in_full_memory(state)
local g = read_group(groups, group)
if not g or g[WAITING] == 0 then return 0 end
local now = clock()
use_segments()
segments.use_rules(g)[POSTPONED] = moment
segments.drop_rules(g)
write_group(groups, group, g)
schedule(due, ready, group, g, now)
if g[HELD] == 0 and due_at(g) < read_count(state, 'wake') then
  wake_leader(state, channel, partition)
end
return g[WAITING]
