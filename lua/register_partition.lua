-- register_partition: records in the state of a partition how many partitions the namespace has.
--
-- KEYS   1 state
-- ARGV   1 number of partitions; with ' policies' behind it if the namespace has policies
-- Reply  1
--
-- Sent after `register` has replied with this number, to a caller to which a script replied
-- `UNREGISTERED`. The record of the namespace decides: another number in the state comes from a
-- caller that was suspended while the namespace was made anew. It gets `UNREGISTERED` next, and
-- then finds that its own number is not the one in the record.
--
-- A caller that read the record before the namespace had policies does not take ' policies' away. A
-- number that the namespace had before it was moved is refused with `UNREGISTERED`.

-- @include schema

local state = KEYS[1]
local partitions = ARGV[1]

local schema, stored, former = unpack(redis.call('HMGET', state, 'schema', 'partitions', 'former'))
local refused = refuse_schema(schema)
if refused then return refused end
local number = string.match(partitions, '^%d+')
if former and number and string.find(' ' .. former .. ' ', ' ' .. number .. ' ', 1, true) then
  return redis.error_reply('UNREGISTERED the namespace was moved')
end
if stored == partitions .. ' policies' then return 1 end
redis.call('HSET', state, 'partitions', partitions)
return 1
