-- @include call_chunked
-- @include seen

-- The changes of the two sets of ids that were flushed lately. They are apart from `seen`, since a
-- script makes anew with each call all functions that it includes, and `add` needs none of these.

-- Removes the sets whose time is over.
local function forget_seen(state, seen, seen_before, now)
  local till, till_before = unpack(redis.call('HMGET', state, SEEN_UNTIL, SEEN_BEFORE_UNTIL))
  if till and not is_known(till, now) then
    redis.call('UNLINK', seen)
    redis.call('HDEL', state, SEEN_UNTIL)
  end
  if till_before and not is_known(till_before, now) then
    redis.call('UNLINK', seen_before)
    redis.call('HDEL', state, SEEN_BEFORE_UNTIL)
  end
end

-- Stores members. When the present set is a window old, it becomes the one before. `where` has
-- state, seen, seen_before, window_ms, now.
local function remember_seen(where, members)
  local state, seen, seen_before, now = where.state, where.seen, where.seen_before, where.now
  forget_seen(state, seen, seen_before, now)
  local latest = now + 2 * where.window_ms  -- the clock may have been set back
  local till = math.min(tonumber(redis.call('HGET', state, SEEN_UNTIL) or nil) or 0, latest)
  if till < now + where.window_ms then  -- the set is a window old, or there is none
    redis.call('UNLINK', seen_before)
    if till > 0 and redis.call('EXISTS', seen) == 1 then
      redis.call('RENAME', seen, seen_before)
      redis.call('HSET', state, SEEN_BEFORE_UNTIL, string.format('%.0f', till))
    else
      redis.call('UNLINK', seen)  -- without a time its ids count for nobody
      redis.call('HDEL', state, SEEN_BEFORE_UNTIL)
    end
    till = latest
  end
  call_chunked('SADD', seen, members)
  redis.call('HSET', state, SEEN_UNTIL, string.format('%.0f', till))
end
