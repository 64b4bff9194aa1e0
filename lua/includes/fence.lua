-- @include schema

-- The fence: only the holder of a running lease gets past it.
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
  return refuse_schema(schema)
end
