-- pause_group: stops or resumes the cutting of batches from one group, whether it exists or not.
-- Tasks can still be added to it. Its batches in flight are finished, but those in retry wait.
--
-- KEYS   1 state  2 groups  3 due  4 ready
-- ARGV   1 '1' to pause, '0' to resume  2 wake channel
--        3 partition number/number of partitions, such as 3/16  4 group key
--        5 who pauses; may be left out
-- Reply  1 if this changed something, else 0

-- @include arguments
-- @include assert_type
-- @include clock
-- @include counts
-- @include full_memory
-- @include group
-- @include partitions
-- @include record
-- @include rules
-- @include schema
-- @include segments
-- @include wake

local state, groups, due, ready = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local pause, channel, place, group = ARGV[1] == '1', ARGV[2], ARGV[3], ARGV[4]
local by = ARGV[5] or ''
local LONGEST_KEY, LONGEST_NAME = 512, 256
assert_arguments(#KEYS == 4 and #ARGV >= 4 and #group > 0 and #group <= LONGEST_KEY
  and #by <= LONGEST_NAME)

local schema, stored_partitions = unpack(redis.call('HMGET', state, 'schema', 'partitions'))
local refused = refuse_schema(schema) or refuse_partitions(stored_partitions, place)
if refused then return refused end
assert_type('ZCARD', { due, ready })
local g, foreign = read_group(groups, group)
if foreign then return redis.error_reply(FOREIGN) end
if pause == (g ~= nil and is_paused(g)) or not g and not pause then return 0 end
if not pause then write_in_full_memory(state) end
g = g or new_group()
local now = clock()
use_segments()
local rules = segments.use_rules(g)
rules[PAUSED], rules[PAUSED_BY] = pause and now or 0, pause and by or ''
if g[WAITING] == 0 then no_task_waits(g) end
segments.drop_rules(g)
write_group(groups, group, g)  -- the first write, which a full memory refuses
schedule(due, ready, group, g, now)
if g[WAITING] > 0 and g[HELD] == 0 and not pause and due_at(g) < read_count(state, 'wake') then
  wake_leader(state, channel, partition_number(place))
end
return 1
