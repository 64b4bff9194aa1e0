-- The order of pages: by a number, then by the bytes of a group key, as in a sorted set. Lua itself
-- compares texts by the locale of the server.

local function is_less(one, other)
  for at = 1, math.min(#one, #other) do
    local a, b = string.byte(one, at), string.byte(other, at)
    if a ~= b then return a < b end
  end
  return #one < #other
end

-- Whether the first of two places is behind the second one.
local function is_behind(number, group, other_number, other_group)
  if number ~= other_number then return number > other_number end
  return is_less(other_group, group)
end
