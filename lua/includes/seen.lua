-- @include call_chunked

-- Ids that were flushed lately and are not accepted again. They are in two sets, the present one
-- and the one before, so that a set expires as a whole and is never searched for old ids. An id is
-- known for at least one dedupe window and at most two.
local function seen_member(group, id) return struct.pack('>I2', #group) .. group .. id end

-- Stores members. When the present set is a window old, it becomes the one before.
local function remember_seen(seen, seen_before, window_ms, members)
  local NO_KEY = -2
  local expires_in = redis.call('PTTL', seen)
  if expires_in < window_ms then  -- the set is a window old, or there is none
    if expires_in ~= NO_KEY then
      redis.call('UNLINK', seen_before)
      redis.call('RENAME', seen, seen_before)
    end
    expires_in = 2 * window_ms
  end
  call_chunked('SADD', seen, members)
  redis.call('PEXPIRE', seen, expires_in)
end
