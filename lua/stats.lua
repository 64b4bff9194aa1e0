-- stats: the counts of a partition, in constant time.
--
-- KEYS   1 state  2 groups  3 batches  4 retry  5 dead
-- ARGV   none
-- Reply  { waiting tasks, tasks in flight, bytes of both, batches flushed, tasks flushed, dead
--        tasks, open groups, batches in flight, those of them in retry, dead letters, 1 if paused,
--        owner of the lease or '', fencing token, ms until the lease runs out or 0 }

-- @include clock
-- @include lease

local state, groups, batches, retry, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local now = clock()

local waiting, claimed, bytes, flushed, flushed_tasks, dead_tasks, paused, owner, token, expires,
  lease = unpack(redis.call('HMGET', state, 'waiting', 'claimed', 'bytes', 'flushed',
    'flushed_tasks', 'dead', 'paused', 'owner', 'token', 'expires', 'lease'))
local function number(field) return tonumber(field or 0) end
local left = lease_left(expires, lease, now)
return {
  number(waiting), number(claimed), number(bytes), number(flushed), number(flushed_tasks),
  number(dead_tasks), redis.call('HLEN', groups), redis.call('HLEN', batches),
  redis.call('ZCARD', retry), redis.call('HLEN', dead), number(paused),
  left > 0 and owner or '', number(token), left,
}
