-- forget_answer: removes the outcome of a task from the old place of its namespace.
--
-- KEYS   1 answer
-- ARGV   1 the record that was copied
-- Reply  1, or 0 if there is another record, or none

-- @include arguments

local answer = KEYS[1]
local record = ARGV[1]
assert_arguments(#KEYS == 1 and #ARGV == 1)
if redis.call('GET', answer) ~= record then return 0 end
return redis.call('UNLINK', answer)
