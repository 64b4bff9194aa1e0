-- acquire: takes the lease of a partition if it is free.
--
-- KEYS  1 state  2 claims  3 tasks of a group that can't be, with an empty key
-- ARGV  1 owner  2 lease ms
-- Reply { fencing token, 0 } or { 0, ms until the present lease runs out }; an error if the user may
--       not run what a leader has to.
--
-- The token only grows: whatever an earlier leader still sends carries a smaller one and is
-- refused. Its claims are void, so all of them can be taken over at once.

-- @include clock
-- @include schema
-- @include counts
-- @include refused

local state, claims, nothing = KEYS[1], KEYS[2], KEYS[3]
local now = clock()
local newer = refuse_schema(redis.call('HGET', state, 'schema'))
if newer then return newer end
local expires = read_count(state, 'expires')
-- Its own lease is granted anew: it asks only for what it does not lead, so the reply to an earlier
-- call was lost, and nobody knows that token.
if expires > now and redis.call('HGET', state, 'owner') ~= ARGV[1] then
  return { 0, expires - now }
end

-- A script that is denied a command after it has enqueued would leave its batch where it is, to be
-- enqueued again. So who is denied one can't lead. Nothing comes of these: no such key, no such member.
local LEADING = {
  { 'HINCRBY', state, 'token', 0 },  -- from here on there is a hash, and lists and sets are refused
  { 'LTRIM', nothing, 0, -1 }, { 'LRANGE', nothing, 0, 0 }, { 'LINDEX', nothing, 0 },
  { 'LLEN', nothing }, { 'RPUSH', state, '' }, { 'RENAME', nothing, nothing }, { 'UNLINK', nothing },
  { 'HDEL', state, '' }, { 'HEXISTS', state, '' }, { 'HLEN', state },
  { 'ZREM', claims, '' }, { 'ZADD', claims, 'XX', 0, '' }, { 'ZSCORE', claims, '' },
  { 'SADD', state, '' }, { 'PTTL', nothing }, { 'PEXPIRE', nothing, 1 },
}
for _, command in ipairs(LEADING) do
  local reply = redis.pcall(unpack(command))
  local refused = type(reply) == 'table' and reply.err and refusal_of_all(reply.err)
  if refused then
    return redis.error_reply(refused.err .. " (the command '" .. command[1] .. "')")
  end
end

if redis.call('ZCARD', claims) > 0 then
  redis.call('ZUNIONSTORE', claims, 1, claims, 'WEIGHTS', 0)
end
-- The time is in it for the sake of a replica that became the primary and has not heard of the last
-- lease: counting alone would give its token to another leader.
local token = math.max(read_count(state, 'token') + 1, now)
redis.call('HSET', state, 'owner', ARGV[1], 'wake', 0, 'token', string.format('%.0f', token),
  'expires', string.format('%.0f', now + tonumber(ARGV[2])))
return { token, 0 }
