-- commit_stream: appends the merged tasks to a stream and removes their batches, in one step.
--
-- KEYS, ARGV, reply: as in includes/commit.lua
-- Keys of the queue:      the stream
-- Options:                approximate maximum length of the stream, entries; '' for no maximum
-- Keys of an entry:       none
-- Arguments of an entry:  7 times field, value

-- @include commit

local stream, max_length = KEYS[7], ARGV[2]
local ARITY = 14

local function append(from)
  local to = from + ARITY - 1
  if max_length == '' then
    return redis.pcall('XADD', stream, '*', unpack(ARGV, from, to))
  end
  return redis.pcall('XADD', stream, 'MAXLEN', '~', max_length, '*', unpack(ARGV, from, to))
end

-- An error (a foreign type, no memory) comes at the first entry of a batch or not at all.
local function enqueue(from, n)
  for at = from, from + n - 1, ARITY do
    local reply = append(at)
    if type(reply) == 'table' and reply.err then return reply end
  end
end

return commit{ enqueue = enqueue, queue_keys = 1, options = 1, arity = ARITY, entry_keys = 0 }
