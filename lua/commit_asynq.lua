-- commit_asynq: enqueues the merged tasks in Asynq and removes their batches, in one step.
--
-- KEYS, ARGV, reply: as in includes/commit.lua
-- Keys of the queue:      the set of Asynq's queues
-- Options:                none
-- Keys of an entry:       4, see includes/asynq.lua
-- Arguments of an entry:  6, see includes/asynq.lua

-- @include asynq
-- @include commit

local queues = KEYS[7]

local function enqueue(from, n, key)
  local entries = n / ASYNQ_ARITY
  for entry = 0, entries - 1 do
    local refused = asynq_refusal(key + entry * ASYNQ_KEYS, from + entry * ASYNQ_ARITY)
    if refused then return refused end
  end
  local added_queue
  for entry = 0, entries - 1 do
    local entry_key, at = key + entry * ASYNQ_KEYS, from + entry * ASYNQ_ARITY
    if ARGV[at + QUEUE] ~= added_queue then
      -- The first write: a foreign type, no memory or a replica is refused here.
      local added = redis.pcall('SADD', queues, ARGV[at + QUEUE])
      if type(added) == 'table' then return added end
      added_queue = ARGV[at + QUEUE]
    end
    local reply = asynq_enqueue(entry_key, at)
    if type(reply) == 'table' then return reply end
  end
end

return commit{
  enqueue = enqueue, queue_keys = 1, options = 0, arity = ASYNQ_ARITY, entry_keys = ASYNQ_KEYS,
}
