-- stats: the counts of a partition, in constant time.
--
-- KEYS  1 state  2 groups  3 batches  4 retry  5 dead
-- Reply { waiting tasks, tasks in flight, bytes of both, batches flushed, tasks flushed, dead tasks,
--       open groups, batches in flight, those of them in retry, dead letters, 1 if paused,
--       owner of the lease or '', fencing token, ms until the lease runs out or 0 }

-- @include clock

local now = clock()
local fields = redis.call('HMGET', KEYS[1], 'waiting', 'claimed', 'bytes', 'flushed',
  'flushed_tasks', 'dead', 'paused', 'owner', 'token', 'expires')
local function count(i) return tonumber(fields[i] or 0) end
local left = math.max(0, (count(10) or 0) - now)
return {
  count(1), count(2), count(3), count(4), count(5), count(6),
  redis.call('HLEN', KEYS[2]), redis.call('HLEN', KEYS[3]), redis.call('ZCARD', KEYS[4]),
  redis.call('HLEN', KEYS[5]), count(7), left > 0 and fields[8] or '', count(9), left,
}
