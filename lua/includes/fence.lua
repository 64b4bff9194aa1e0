-- @include full_memory
-- @include schema

-- The fence: only the holder of a running lease gets past it. All that a leader does frees memory
-- in the end, so its scripts write although memory is full.
-- Returns nil, or the error reply that the script has to return.
local function fence(state, token, now)
  local newest_token, expires, schema =
    unpack(redis.call('HMGET', state, 'token', 'expires', 'schema'))
  if newest_token ~= token then
    return redis.error_reply('STALE the partition has another leader')
  end
  if (tonumber(expires) or 0) <= now then
    return redis.error_reply('STALE the lease has expired')
  end
  local refused = refuse_schema(schema)
  if refused then return refused end
  write_in_full_memory(state)
end
