-- thaw: opens a partition that a mover has frozen, in the layout that the namespace has now.
--
-- KEYS   1 state
-- ARGV   1 id of the mover
--        2 number of partitions; with ' policies' behind it if the namespace has policies
--        3 numbers that the namespace had before, with one space between
--        4 '' if the namespace is not paused; else '1', and behind it `paused_by` of a state
--        5, 6 numbers of batches and tasks that are done, to be added
--        7 counter in batch ids: the next id has a larger one
--        8, 9 until when the ids in `seen` and `seen_before` are known, ms; 0 if there are none
-- Reply  1, or 0 if the partition is not frozen any more
--
-- One of the numbers in 3 is never accepted again from `register_partition`: it would come from a
-- caller that was suspended while the namespace moved.

-- @include arguments
-- @include counts
-- @include full_memory
-- @include schema
-- @include seen

local state = KEYS[1]
local mover, partitions, former, paused = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
assert_arguments(#KEYS == 1 and #ARGV == 9 and string.match(partitions, '^%d+$')
  or string.match(partitions or '', '^%d+ policies$'))
local flushed, flushed_tasks, sequence = whole_number(ARGV[5]), whole_number(ARGV[6]),
  whole_number(ARGV[7])
local seen_until, seen_before_until = whole_number(ARGV[8]), whole_number(ARGV[9])

local schema = redis.call('HGET', state, 'schema')
if schema ~= FROZEN .. mover then
  if schema and string.sub(schema, 1, #FROZEN) == FROZEN then
    return redis.error_reply('STALE the partition is not frozen by this mover')
  end
  return 0
end
write_in_full_memory(state)
redis.call('HSET', state, 'partitions', partitions, 'wake', 0)
if former == '' then
  redis.call('HDEL', state, 'former')
else
  redis.call('HSET', state, 'former', former)
end
if paused ~= '' then redis.call('HSET', state, 'paused', 1, 'paused_by', string.sub(paused, 2)) end
add_count(state, 'flushed', flushed)
add_count(state, 'flushed_tasks', flushed_tasks)
local function raise(field, value)
  if value > read_count(state, field) then
    redis.call('HSET', state, field, string.format('%.0f', value))
  end
end
raise('sequence', sequence)
raise(SEEN_UNTIL, seen_until)
raise(SEEN_BEFORE_UNTIL, seen_before_until)
redis.call('HDEL', state, 'schema')
return 1
