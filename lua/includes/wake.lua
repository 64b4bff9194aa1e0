-- Wakes the partition's leader if it sleeps past `at` (ms). `wake` in the state says when it
-- will look by itself; 0 means that it has been told and has not looked since.
-- A caller that has read it says what it was.
local function wake_leader(state, channel, partition, at, wake)
  if at < (wake or read_count(state, 'wake')) then
    redis.call('HSET', state, 'wake', 0)
    redis.call('PUBLISH', channel, partition)
  end
end
