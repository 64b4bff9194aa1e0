-- commit_stream: appends the merged tasks to a stream and removes their batches, in one step.
--
-- KEYS, ARGV, reply: see includes/commit.lua
-- Key of the sink: the stream.
-- Option: about how many entries the stream keeps at most, '' for all.
-- Arguments of an entry: 6 times field, value.

-- @include clock
-- @include schema
-- @include fence
-- @include record
-- @include counts
-- @include group
-- @include batch
-- @include refused
-- @include commit

local ARITY = 12
local stream, keep = KEYS[7], ARGV[2]

local function append(from)
  if keep == '' then
    return redis.pcall('XADD', stream, '*', unpack(ARGV, from, from + ARITY - 1))
  end
  return redis.pcall('XADD', stream, 'MAXLEN', '~', keep, '*', unpack(ARGV, from, from + ARITY - 1))
end

-- What refuses the first entry (a foreign type, no memory) is all that can refuse one.
local function enqueue(from, n)
  for entry = from, from + n - 1, ARITY do
    local reply = append(entry)
    if type(reply) == 'table' and reply.err then return reply end
  end
end

return commit(enqueue, 1, 1, ARITY, 0)
