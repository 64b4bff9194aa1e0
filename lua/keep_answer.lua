-- keep_answer: stores the outcome of a task at the new place of its namespace.
--
-- KEYS   1 answer
-- ARGV   1 the record  2 how long it is kept, ms
-- Reply  1, or 0 if there is one already

-- @include arguments

local answer = KEYS[1]
local record, keep_ms = ARGV[1], whole_number(ARGV[2])
assert_arguments(#KEYS == 1 and #ARGV == 2 and keep_ms > 0)
return redis.call('SET', answer, record, 'PX', string.format('%.0f', keep_ms), 'NX') and 1 or 0
