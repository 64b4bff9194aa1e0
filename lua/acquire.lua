-- acquire: takes the lease of a partition if it is free.
--
-- KEYS   1 state  2 claims  3 tasks of the empty group key, which no group has
-- ARGV   1 owner  2 lease time, ms  3 partition number/number of partitions, such as 3/16
-- Reply  { fencing token, 0 } or { 0, ms until the present lease runs out };
--        an error if the user may not run a command that a leader needs
--
-- The token only grows. Whatever an earlier leader still sends has a smaller token and is refused.
-- The claims of earlier leaders end, so all of their batches can be taken over at once.

-- @include arguments
-- @include assert_type
-- @include claims
-- @include clock
-- @include counts
-- @include full_memory
-- @include lease
-- @include partitions
-- @include schema
-- @include server_errors

local state, claims, no_tasks = KEYS[1], KEYS[2], KEYS[3]
local owner, lease_ms, place = ARGV[1], whole_number(ARGV[2]), ARGV[3]
assert_arguments(#KEYS == 3 and #ARGV >= 3)
local LONGEST_TOKEN_LEAD_MS = 316224000000  -- ten years: a clock may have been set back
local now = clock()

local schema, partitions, last_owner, expires, lease =
  unpack(redis.call('HMGET', state, 'schema', 'partitions', 'owner', 'expires', 'lease'))
local refused = refuse_schema(schema) or refuse_partitions(partitions, place)
if refused then return refused end
assert_type('ZCARD', { claims })
local left = lease_left(expires, lease, now)
-- A flusher asks only for what it does not lead. If it owns the lease, the reply to an earlier call
-- was lost and nobody knows that token: the lease is granted again.
if left > 0 and last_owner ~= owner then return { 0, left } end

-- A script that is denied a command after it has enqueued would leave its batch in place, to be
-- enqueued again. So a flusher that is denied one of these commands can't lead. They change
-- nothing: there is no such key and no such member.
write_in_full_memory(state)
local LEADER_COMMANDS = {
  { 'HINCRBY', state, 'token', 0 },  -- creates the hash: commands for lists and sets fail from here
  { 'LTRIM', no_tasks, 0, -1 }, { 'LRANGE', no_tasks, 0, 0 }, { 'LINDEX', no_tasks, 0 },
  { 'LLEN', no_tasks }, { 'RPUSH', state, '' },
  { 'RENAME', no_tasks, no_tasks }, { 'UNLINK', no_tasks },
  { 'HDEL', state, '' }, { 'HEXISTS', state, '' }, { 'HLEN', state },
  { 'HKEYS', no_tasks },
  { 'ZREM', claims, '' }, { 'ZADD', claims, 'XX', 0, '' }, { 'ZSCORE', claims, '' },
  { 'ZMSCORE', claims, '' },
  { 'HSCAN', no_tasks, 0 },
  { 'SADD', state, '' }, { 'EXISTS', no_tasks },
}
for _, command in ipairs(LEADER_COMMANDS) do
  local reply = redis.pcall(unpack(command))
  local denied = type(reply) == 'table' and reply.err and server_error(reply.err)
  if denied then
    local name = command[1]
    return redis.error_reply(denied.err .. " (the command '" .. name .. "')")
  end
end

end_claims(claims, DIED)
-- The time is part of the token because of failovers: a replica that became the primary may not
-- know the last lease, and would give its token to another leader by counting alone. A number that
-- is far ahead of the clock is no token: nothing could be counted on from 2^53.
local last_token = read_count(state, 'token')
if last_token > now + LONGEST_TOKEN_LEAD_MS then last_token = 0 end
local token = math.max(last_token + 1, now)
redis.call('HSET', state, 'owner', owner, 'wake', 0, 'token', string.format('%.0f', token),
  'expires', string.format('%.0f', now + lease_ms),
  'lease', string.format('%.0f', lease_ms))
return { token, 0 }
