-- commit_list: appends the merged tasks to a list and removes their batches, in one step.
--
-- KEYS, ARGV, reply: as in includes/commit.lua
-- Keys of the queue:      the list; its oldest element is on the left
-- Options:                none
-- Keys of an entry:       none
-- Arguments of an entry:  the element

-- @include call_chunked
-- @include commit

local list = KEYS[7]

local function enqueue(from, n)
  return pcall_chunked('RPUSH', list, ARGV, from, from + n - 1)
end

return commit{ enqueue = enqueue, queue_keys = 1, options = 0, arity = 1, entry_keys = 0 }
