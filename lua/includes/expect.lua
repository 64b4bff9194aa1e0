-- Reads that raise if a key holds a foreign type: done before the first write, so that a script is
-- refused as a whole. `command` tells the size of the right type.
local function expect(command, keys)
  for _, key in ipairs(keys) do redis.call(command, key) end
end
