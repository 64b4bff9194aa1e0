-- Raises an error if one of the keys holds a foreign type. Called before the first write, so that
-- the whole script is refused. `command` reads the size of the right type, such as LLEN of a list.
local function assert_type(command, keys)
  for _, key in ipairs(keys) do redis.call(command, key) end
end
