-- recall: frees all claims of a partition except those of the given batches. Sent by a leader to
-- which the reply to a claim was lost.
--
-- KEYS   1 state  2 claims
-- ARGV   1 fencing token  2 duration of the given claims from now, ms
--        then ids of the batches that the leader knows
-- Reply  1

-- @include arguments
-- @include claims
-- @include clock
-- @include fence

local state, claims = KEYS[1], KEYS[2]
local token, claim_ms = ARGV[1], whole_number(ARGV[2])
local FIRST_BATCH = 3
assert_arguments(#KEYS == 2 and #ARGV >= 2)
local now = clock()
local stale = fence(state, token, now)
if stale then return stale end

end_claims(claims, FREED)
for at = FIRST_BATCH, #ARGV do
  local id = ARGV[at]
  redis.call('ZADD', claims, 'XX', now + claim_ms, id)
end
return 1
