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

-- Returns the place in the list of the waiting task with this id and number, or nil. The distance
-- of a number from its place rises along the list, so each look at a place bounds the place that is
-- sought from both sides.
local function place_of(tasks, ids, g, wanted, id)
  -- The number and the id of the task at a place; there is no number if foreign bytes are there.
  local function task_at(place)
    local found = entry_id(redis.call('LINDEX', tasks, place) or '')
    return tonumber(redis.call('HGET', ids, found) or nil), found
  end
  local low = math.max(g[CLAIMED], wanted - g[BASE] - g[CANCELLED])
  local high = math.min(wanted - g[BASE], g[CLAIMED] + g[WAITING] - 1)
  local looks = 0
  while low <= high do
    looks = looks + 1
    local middle = looks == 1 and high or looks == 2 and low or math.floor((low + high) / 2)
    local place = middle
    local found_number, found_id = task_at(place)
    while not found_number and place > low do  -- foreign bytes: look before them
      place = place - 1
      found_number, found_id = task_at(place)
    end
    if found_id == id then return place end
    if not found_number then
      low = middle + 1
    elseif found_number > wanted then
      low, high = math.max(low, place - (found_number - wanted)), place - 1
    else
      low, high = middle + 1, math.min(high, place + (wanted - found_number))
    end
  end
end
