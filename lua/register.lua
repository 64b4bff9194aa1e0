-- register: records what a namespace is made of, at its first use.
--
-- KEYS  1 meta
-- ARGV  1 key schema version  2 number of partitions
-- Reply { schema version, number of partitions } that are in force; a caller that differs has to
--       stop.

redis.call('HSETNX', KEYS[1], 'schema', ARGV[1])
redis.call('HSETNX', KEYS[1], 'partitions', ARGV[2])
return redis.call('HMGET', KEYS[1], 'schema', 'partitions')
