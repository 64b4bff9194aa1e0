-- register: records the schema and the number of partitions of a namespace at its first use.
--
-- KEYS   1 meta
-- ARGV   1 key schema version  2 number of partitions
-- Reply  { schema version, number of partitions }: those in force. A caller with others has to
--        stop.

-- @include arguments

local meta = KEYS[1]
local schema, partitions = ARGV[1], ARGV[2]
assert_arguments(#KEYS == 1 and #ARGV >= 2)

local in_force = redis.call('HMGET', meta, 'schema', 'partitions')
local known_schema, known_partitions = unpack(in_force)
if not known_schema or not known_partitions then  -- so that reading needs no right to write
  redis.call('HSETNX', meta, 'schema', schema)
  redis.call('HSETNX', meta, 'partitions', partitions)
  in_force = redis.call('HMGET', meta, 'schema', 'partitions')
end
return in_force
