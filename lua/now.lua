-- now: returns the time of Redis, by which all that redisagg does is timed.
--
-- KEYS   1 meta, for the node of a cluster that answers
-- ARGV   none
-- Reply  ms since the epoch

-- @include arguments
-- @include clock

assert_arguments(#KEYS == 1)
return clock()
