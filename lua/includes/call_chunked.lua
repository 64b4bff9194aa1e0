local CHUNK = 4000  -- values that certainly fit on Lua's stack

-- Runs a variadic command once per CHUNK values. `values` may hold pairs.
local function call_chunked(command, key, values)
  for from = 1, #values, CHUNK do
    redis.call(command, key, unpack(values, from, math.min(from + CHUNK - 1, #values)))
  end
end
