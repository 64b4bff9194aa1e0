-- The counts in the state. Foreign bytes in place of a count are read as 0: they must not stop a
-- script, least of all one that has already written.
local LARGEST_COUNT = 2^53  -- a double counts no further

local function to_count(stored)
  local count = tonumber(stored or nil) or 0
  return math.abs(count) < LARGEST_COUNT and count or 0
end

local function read_count(state, field)
  return to_count(redis.call('HGET', state, field))
end

local function add_count(state, field, n)
  n = n + 0  -- Redis takes no '-0', which is what the caller's minus makes of 0
  local reply = redis.pcall('HINCRBY', state, field, n)
  if type(reply) ~= 'table' then return end
  -- No integer, or one that would overflow.
  if string.find(reply.err, 'integer', 1, true) or string.find(reply.err, 'overflow', 1, true) then
    redis.call('HSET', state, field, math.max(0, n))
  else
    redis.call('HINCRBY', state, field, n)  -- raises the error that pcall returned
  end
end
