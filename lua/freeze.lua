-- freeze: stops all changes of a partition but those of a mover, and ends the lease.
--
-- KEYS   1 state  2 claims
-- ARGV   1 id of the mover  2 '1' to take over only what a mover has frozen, else ''
-- Reply  1, or 0 if it is not frozen
--
-- From then on every script that adds, leads or steers replies FROZEN, or STALE to the last leader.
-- A partition that another mover has frozen, or that an earlier move left behind, is taken over.

-- @include arguments
-- @include assert_type
-- @include claims
-- @include full_memory
-- @include schema

local state, claims = KEYS[1], KEYS[2]
local mover, again = ARGV[1], ARGV[2] == '1'
local LONGEST_ID = 200
assert_arguments(#KEYS == 2 and #ARGV == 2 and #mover > 0 and #mover <= LONGEST_ID)

local schema = redis.call('HGET', state, 'schema')
local frozen = schema and string.sub(schema, 1, #FROZEN) == FROZEN
if again and not frozen then return 0 end
if schema ~= LEFT_BEHIND and not frozen then
  local refused = refuse_schema(schema)
  if refused then return refused end
end
assert_type('ZCARD', { claims })
write_in_full_memory(state)
redis.call('HSET', state, 'schema', FROZEN .. mover, 'expires', 0)
end_claims(claims, FREED)
return 1
