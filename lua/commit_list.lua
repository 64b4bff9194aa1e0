-- commit_list: appends the merged tasks to a list and removes their batches, in one step.
--
-- KEYS, ARGV, reply: see includes/commit.lua
-- Key of the sink: the list; its oldest element is on the left. No option.
-- Argument of an entry: the element.

-- @include clock
-- @include schema
-- @include fence
-- @include record
-- @include counts
-- @include group
-- @include batch
-- @include refused
-- @include commit

local list = KEYS[7]

local function enqueue(from, n)
  return redis.pcall('RPUSH', list, unpack(ARGV, from, from + n - 1))
end

return commit(enqueue, 1, 0, 1, 0)
