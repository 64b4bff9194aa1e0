-- Arguments are checked before the first write: a script that raised an error later would leave
-- half of its transition behind.
local LARGEST_ARGUMENT = 2^53

-- The whole number from 0 that an argument holds; raises an error for anything else.
local function whole_number(argument)
  local number = tonumber(argument)
  if number and number % 1 == 0 and number >= 0 and number <= LARGEST_ARGUMENT then
    return number
  end
  error('an argument is no whole number from 0')
end

-- Raises an error unless `complete`.
local function assert_arguments(complete)
  if not complete then error('the wrong number of arguments or keys') end
end
