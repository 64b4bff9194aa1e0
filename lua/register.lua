-- register: records what a namespace is made of, at its first use.
--
-- KEYS  1 meta
-- ARGV  1 key schema version  2 number of partitions
-- Reply { schema version, number of partitions } that are in force; a caller that differs has to
--       stop.

local meta = redis.call('HMGET', KEYS[1], 'schema', 'partitions')
if not meta[1] or not meta[2] then  -- so that who only looks needs no right to write
  redis.call('HSETNX', KEYS[1], 'schema', ARGV[1])
  redis.call('HSETNX', KEYS[1], 'partitions', ARGV[2])
  meta = redis.call('HMGET', KEYS[1], 'schema', 'partitions')
end
return meta
