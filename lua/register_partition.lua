-- register_partition: records in the state of a partition how many partitions the namespace has.
--
-- KEYS   1 state
-- ARGV   1 number of partitions
-- Reply  1
--
-- Sent after `register` has replied with this number, to a caller to which a script replied
-- `UNREGISTERED`. The record of the namespace decides: another number in the state comes from a
-- caller that was suspended while the namespace was made anew. It gets `UNREGISTERED` next, and
-- then finds that its own number is not the one in the record.

-- @include schema

local state = KEYS[1]
local partitions = ARGV[1]

local schema = unpack(redis.call('HMGET', state, 'schema'))
local refused = refuse_schema(schema)
if refused then return refused end
redis.call('HSET', state, 'partitions', partitions)
return 1
