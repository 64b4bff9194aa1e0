-- release: gives the lease of a partition back, so that another flusher can take it at once.
-- Batches that the leader has not committed can be claimed again.
--
-- KEYS   1 state  2 claims
-- ARGV   1 fencing token  2 wake channel
-- Reply  1, or 0 if another leader has the lease

-- @include full_memory

local state, claims = KEYS[1], KEYS[2]
local token, channel = ARGV[1], ARGV[2]

if redis.call('HGET', state, 'token') ~= token then return 0 end
write_in_full_memory(state)
redis.call('HSET', state, 'expires', 0)
if redis.call('ZCARD', claims) > 0 then
  redis.call('ZUNIONSTORE', claims, 1, claims, 'WEIGHTS', 0)
end
redis.call('PUBLISH', channel, 'released')
return 1
