-- @include full_memory
-- @include schema

-- The fence of a mover: nothing but its own scripts changes a partition that it has frozen. Another
-- mover that freezes the partition anew takes over. A move needs no more memory than what it moves,
-- and frees as much, so its scripts write although memory is full.
-- Returns nil, or the error reply that the script has to return.
local function refuse_mover(state, mover)
  if redis.call('HGET', state, 'schema') ~= FROZEN .. mover then
    return redis.error_reply('STALE the partition is not frozen by this mover')
  end
  write_in_full_memory(state)
end
