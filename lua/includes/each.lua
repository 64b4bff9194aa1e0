-- Runs a variadic command in slices that fit on Lua's stack; `values` may hold pairs.
local function each(command, key, values)
  for from = 1, #values, 4000 do
    redis.call(command, key, unpack(values, from, math.min(from + 3999, #values)))
  end
end
