-- release: gives the lease of a partition back, so that another flusher can take it at once.
-- Batches that the leader has not committed can be claimed again.
--
-- KEYS   1 state  2 claims
-- ARGV   1 fencing token  2 wake channel
-- Reply  1, or 0 if another leader has the lease

-- @include arguments
-- @include assert_type
-- @include claims
-- @include full_memory

local state, claims = KEYS[1], KEYS[2]
local token, channel = ARGV[1], ARGV[2]
assert_arguments(#KEYS == 2 and #ARGV >= 2)

if redis.call('HGET', state, 'token') ~= token then return 0 end
assert_type('ZCARD', { claims })
write_in_full_memory(state)
redis.call('HSET', state, 'expires', 0)
end_claims(claims, FREED)
redis.call('PUBLISH', channel, 'released')
return 1
