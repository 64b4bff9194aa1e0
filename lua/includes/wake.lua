-- @include counts

-- Wakes the leader of a partition if it sleeps past `due_at`. The field `wake` of the state says
-- until when it sleeps, ms; 0: it was woken and has not polled since. `call` has
--   state, channel, partition, due_at (ms)
--   wake  the field's value, if the caller has read it
local function wake_leader(call)
  local state = call.state
  if call.due_at < (call.wake or read_count(state, 'wake')) then
    redis.call('HSET', state, 'wake', 0)
    redis.call('PUBLISH', call.channel, call.partition)
  end
end
