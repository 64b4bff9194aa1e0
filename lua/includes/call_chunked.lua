local CHUNK = 4000  -- values that certainly fit on Lua's stack

-- Runs a variadic command once per CHUNK values, from place `first` to place `last` of `values`,
-- which may hold pairs. Returns nil, or the first error as redis.pcall returns it: if the key holds
-- a foreign type, the first call fails, and nothing was written.
local function pcall_chunked(command, key, values, first, last)
  for from = first, last, CHUNK do
    local to = math.min(from + CHUNK - 1, last)
    local reply = redis.pcall(command, key, unpack(values, from, to))
    if type(reply) == 'table' and reply.err then return reply end
  end
end

-- Runs a variadic command once per CHUNK values; raises the error. The caller has made sure of the
-- type of the key.
local function call_chunked(command, key, values)
  for from = 1, #values, CHUNK do
    redis.call(command, key, unpack(values, from, math.min(from + CHUNK - 1, #values)))
  end
end

-- Removes keys, whatever they hold. Returns how many of them there were.
local function unlink_keys(keys)
  local removed = 0
  for from = 1, #keys, CHUNK do
    local to = math.min(from + CHUNK - 1, #keys)
    removed = removed + redis.call('UNLINK', unpack(keys, from, to))
  end
  return removed
end
