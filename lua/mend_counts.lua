-- mend_counts: corrects the counts of a partition, unless they have changed since they were read.
--
-- KEYS   1 state
-- ARGV   1 waiting  2 claimed  3 dead  4 bytes  5 sequence  6 flushed_tasks, as they were read,
--        '' for a field that is not there
--        7 waiting  8 claimed  9 dead  10 bytes, as they should be
-- Reply  1, or 0 if one has changed: nothing was written then

-- @include arguments
-- @include full_memory
-- @include schema

local state = KEYS[1]
local FIELDS = { 'waiting', 'claimed', 'dead', 'bytes', 'sequence', 'flushed_tasks' }
local WRITTEN = 4
assert_arguments(#KEYS == 1 and #ARGV == #FIELDS + WRITTEN)
for at = #FIELDS + 1, #ARGV do whole_number(ARGV[at]) end

local refused = refuse_schema(redis.call('HGET', state, 'schema'))
if refused then return refused end
for at, stored in ipairs(redis.call('HMGET', state, unpack(FIELDS))) do
  if (stored or '') ~= ARGV[at] then return 0 end
end
write_in_full_memory(state)
for at = 1, WRITTEN do redis.call('HSET', state, FIELDS[at], ARGV[#FIELDS + at]) end
return 1
