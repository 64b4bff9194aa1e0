-- @include call_chunked
-- @include group
-- @include rules

-- The clock of Redis may be set back: NTP after a bad start, or a failover to a server that is
-- behind. What was to happen at a time of the old clock would then wait until the new one has
-- caught up. `poll` notes the time in the state, sees the step, and looks through the indexes once.
local STEP_MS = 1000  -- smaller steps are ignored
local MAX_RETRIES_MOVED = 1000  -- more than leaders have in flight
local MAX_GROUPS_MOVED = 100  -- about; that one call looks at

-- Batches in retry are due now, whatever their delay was: it is not known how much of it is over.
local function move_retries(at, now)
  local moved = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', at.retry, '(' .. string.format('%.0f', now),
    '+inf', 'LIMIT', 0, MAX_RETRIES_MOVED)) do
    moved[#moved + 1] = now
    moved[#moved + 1] = id
  end
  call_chunked('ZADD', at.retry, moved)
end

-- Looks through a part of the groups: no deadline is further ahead than the max delay, and no batch
-- in retry is due later than now. Returns the cursor of the next part; '0' at the end.
local function move_groups(at, cursor, now)
  local next_cursor, found =
    unpack(redis.call('HSCAN', at.groups, cursor, 'COUNT', MAX_GROUPS_MOVED))
  for i = 1, #found, 2 do
    local group = found[i]
    local g = read_group(at.groups, group)
    if g and (g[DEADLINE] > now + g[DELAY] or g[HELD_UNTIL] > now or is_cooling(g)) then
      g[DEADLINE] = math.min(g[DEADLINE], now + g[DELAY])
      g[HELD_UNTIL] = math.min(g[HELD_UNTIL], now)
      if is_cooling(g) then
        g[RULES][COOL_UNTIL] = math.min(g[RULES][COOL_UNTIL], now + g[RULES][INTERVAL])
      end
      write_group(at.groups, group, g)
      redis.call('ZADD', at.due, 'XX', next_look(g), group)
    end
  end
  return next_cursor
end

-- Notes the time. After a step back moves a part of what waits. Returns whether more is left to
-- move. `at` has state, groups, retry, due.
local function follow_clock(at, now)
  local noted, cursor = unpack(redis.call('HMGET', at.state, 'clock', 'clock_cursor'))
  redis.call('HSET', at.state, 'clock', string.format('%.0f', now))
  if (tonumber(noted) or 0) > now + STEP_MS then
    move_retries(at, now)
    cursor = '0'
  end
  if not cursor then return false end
  cursor = move_groups(at, string.match(cursor, '^%d+$') or '0', now)
  if cursor == '0' then
    redis.call('HDEL', at.state, 'clock_cursor')
    return false
  end
  redis.call('HSET', at.state, 'clock_cursor', cursor)
  return true
end
