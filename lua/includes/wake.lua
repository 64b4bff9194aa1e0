-- Wakes the partition's leader if it sleeps past `at` (ms). `wake` in the state says when it
-- will look by itself; 0 means that it has been told and has not looked since.
local function wake_leader(state, channel, partition, at)
  local wake = tonumber(redis.call('HGET', state, 'wake') or 0)
  if at < wake then
    redis.call('HSET', state, 'wake', 0)
    redis.call('PUBLISH', channel, partition)
  end
end
