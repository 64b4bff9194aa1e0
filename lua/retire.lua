-- retire: removes what is left of a partition from which a mover has taken all groups.
--
-- KEYS   1 state  2 groups  3 batches  4 claims  5 retry  6 suspects  7 due  8 ready  9 dead
--        10 seen  11 seen_before
-- ARGV   1 id of the mover
-- Reply  1, or 0 if there are still groups, batches or dead letters
--
-- The state stays as a mark: who comes late is refused, and registers again.

-- @include arguments
-- @include mover
-- @include schema

local state, groups, batches, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[9]
local mover = ARGV[1]
assert_arguments(#KEYS == 11 and #ARGV == 1)

if redis.call('HGET', state, 'schema') == LEFT_BEHIND then return 1 end
local left = redis.call('HLEN', groups) + redis.call('HLEN', batches) + redis.call('HLEN', dead)
local refused = refuse_mover(state, mover)
if refused then return refused end
if left > 0 then return 0 end
redis.call('UNLINK', unpack(KEYS, 2))
redis.call('UNLINK', state)
redis.call('HSET', state, 'schema', LEFT_BEHIND)
return 1
