-- extend: prolongs the claims of batches that the leader still works on.
--
-- KEYS   1 state  2 claims
-- ARGV   1 fencing token  2 duration of the claims from now, ms
--        then batch ids
-- Reply  1

-- @include arguments
-- @include clock
-- @include fence

local state, claims = KEYS[1], KEYS[2]
local token, claim_ms = ARGV[1], whole_number(ARGV[2])
local FIRST_BATCH = 3
local now = clock()
local stale = fence(state, token, now)
if stale then return stale end

for at = FIRST_BATCH, #ARGV do
  local id = ARGV[at]
  redis.call('ZADD', claims, 'XX', now + claim_ms, id)
end
return 1
