-- The fence: only the holder of a lease that is still running gets past it.
-- Returns nil, or the error reply that the script has to return.
local function fence(state, token, now)
  local lease = redis.call('HMGET', state, 'token', 'expires', 'schema')
  if lease[1] ~= token then
    return redis.error_reply('STALE the partition has another leader')
  end
  if (tonumber(lease[2]) or 0) <= now then
    return redis.error_reply('STALE the lease has expired')
  end
  return refuse_schema(lease[3])
end
