-- @include call_chunked
-- @include entry
-- @include group
-- @include segments

-- Removes the ids of entries from the hash of waiting ids: of all, or of those from a place on. A
-- foreign type in place of the hash stays. Returns nil, or the error as redis.pcall returns it.
local function remove_ids(ids, entries, first)
  local names = {}
  for i = first or 1, #entries do names[#names + 1] = entry_id(entries[i]) end
  return pcall_chunked('HDEL', ids, names, 1, #names)
end

-- Updates the group's record after its waiting tasks have lost some. `left`: the segments
-- that are left, or nil if the group has none.
local function refresh_head(tasks, g, left, now)
  if g[WAITING] == 0 then return no_task_waits(g) end
  local arrival = entry_arrival(redis.call('LINDEX', tasks, g[CLAIMED]) or '')
  -- Both were in the future if the clock was set back since.
  g[FIRST] = math.min(arrival, now)
  g[MARKED] = math.min(g[MARKED], g[WAITING])
  if left then
    segments.combine(g, left, now)
  else
    g[DEADLINE] = math.min(math.max(g[DEADLINE], g[FIRST] + g[DELAY]), now + g[DELAY])
  end
end
