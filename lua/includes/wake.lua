-- Wakes the leader of a partition. Called if the leader sleeps too long: the field `wake` of the
-- state says until when, ms; 0: it was woken and has not polled since.
local function wake_leader(state, channel, partition)
  redis.call('HSET', state, 'wake', 0)
  redis.call('PUBLISH', channel, partition)
end
