-- acquire: takes the lease of a partition if it is free.
--
-- KEYS  1 state  2 claims
-- ARGV  1 owner  2 lease ms
-- Reply { fencing token, 0 } or { 0, ms until the present lease runs out }
--
-- The token only grows: whatever an earlier leader still sends carries a smaller one and is
-- refused. Its claims are void, so all of them can be taken over at once.

-- @include clock

local state, claims = KEYS[1], KEYS[2]
local now = clock()
local expires = tonumber(redis.call('HGET', state, 'expires') or 0)
-- Its own lease is granted anew: it asks only for what it does not lead, so the reply to an earlier
-- call was lost, and nobody knows that token.
if expires > now and redis.call('HGET', state, 'owner') ~= ARGV[1] then
  return { 0, expires - now }
end
if redis.call('ZCARD', claims) > 0 then
  redis.call('ZUNIONSTORE', claims, 1, claims, 'WEIGHTS', 0)
end
local token = redis.call('HINCRBY', state, 'token', 1)
redis.call('HSET', state, 'owner', ARGV[1], 'wake', 0,
  'expires', string.format('%.0f', now + tonumber(ARGV[2])))
return { token, 0 }
