-- flush_all: makes all waiting tasks of a partition due now, a limited number of groups per call.
--
-- KEYS   1 state  2 groups  3 due  4 ready
-- ARGV   1 wake channel  2 partition number  3 cursor, '0' in the first call
--        4 approximate number of groups
-- Reply  { cursor of the next call, '0' after the last group; number of tasks newly marked }

-- @include arguments
-- @include assert_type
-- @include clock
-- @include counts
-- @include flush
-- @include full_memory
-- @include schema
-- @include wake

local state, groups, due, ready = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local channel, partition, cursor, group_count = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
assert_arguments(#KEYS == 4 and #ARGV >= 4)

local refused = refuse_schema(redis.call('HGET', state, 'schema'))
if refused then return refused end
assert_type('ZCARD', { due, ready })
write_in_full_memory(state)
local now = clock()
local marked = 0
local next_cursor, fields = unpack(redis.call('HSCAN', groups, cursor, 'COUNT', group_count))
for i = 1, #fields, 2 do  -- group key, record, group key, record, ...
  marked = marked
    + flush_group{ groups = groups, due = due, ready = ready, group = fields[i], now = now }
end
if marked > 0 and now < read_count(state, 'wake') then
  wake_leader(state, channel, partition)
end
return { next_cursor, marked }
