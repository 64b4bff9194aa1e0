-- commit_asynq: enqueues the merged tasks in Asynq and removes their batches, in one step.
--
-- KEYS, ARGV, reply: see includes/commit.lua
-- Key of the sink: the set of Asynq's queues. No option.
-- Keys and arguments of an entry: see includes/asynq.lua

-- @include clock
-- @include schema
-- @include fence
-- @include record
-- @include counts
-- @include group
-- @include batch
-- @include refused
-- @include asynq
-- @include commit

local queues = KEYS[7]

local function enqueue(from, n, key)
  local entries = n / ASYNQ_ARITY
  for entry = 0, entries - 1 do
    local refused = asynq_refusal(key + entry * ASYNQ_KEYS, from + entry * ASYNQ_ARITY)
    if refused then return refused end
  end
  for entry = 0, entries - 1 do
    local at = from + entry * ASYNQ_ARITY
    -- The first write of all: a foreign type, no memory or a replica is refused here.
    local known = redis.pcall('SADD', queues, ARGV[at])
    if type(known) == 'table' then return known end
    local reply = asynq_enqueue(key + entry * ASYNQ_KEYS, at)
    if type(reply) == 'table' then return reply end
  end
end

return commit(enqueue, 1, 0, ASYNQ_ARITY, ASYNQ_KEYS)
