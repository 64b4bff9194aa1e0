-- flush: makes all waiting tasks of groups due now.
--
-- KEYS   1 state  2 groups  3 due  4 ready
-- ARGV   1 wake channel  2 partition number
--        then group keys
-- Reply  number of tasks that were newly marked

-- @include arguments
-- @include assert_type
-- @include clock
-- @include counts
-- @include flush
-- @include full_memory
-- @include schema
-- @include wake

local state, groups, due, ready = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local channel, partition = ARGV[1], ARGV[2]
local FIRST_GROUP = 3
assert_arguments(#KEYS == 4 and #ARGV >= 2)

local refused = refuse_schema(redis.call('HGET', state, 'schema'))
if refused then return refused end
assert_type('ZCARD', { due, ready })
write_in_full_memory(state)
local now = clock()
local marked = 0
for at = FIRST_GROUP, #ARGV do
  marked = marked
    + flush_group{ groups = groups, due = due, ready = ready, group = ARGV[at], now = now }
end
if marked > 0 and now < read_count(state, 'wake') then
  wake_leader(state, channel, partition)
end
return marked
