-- @include call_chunked
-- @include entry
-- @include group

-- Removes the ids of entries from the hash of waiting ids. A foreign type in its place stays.
local function remove_ids(ids, entries)
  local names = {}
  for i = 1, #entries do names[i] = entry_id(entries[i]) end
  pcall_chunked('HDEL', ids, names, 1, #names)
end

-- Takes the ids of entries that a batch holds off the waiting ids, but not those that wait again
-- with this number or a higher one (nil: none does). A foreign type in place of the ids stays.
local function take_off_ids(ids, entries, number)
  for from = 1, #entries, CHUNK do
    local names, held = {}, {}
    local to = math.min(from + CHUNK - 1, #entries)
    for i = from, to do names[#names + 1] = entry_id(entries[i]) end
    if number then
      local numbers = redis.pcall('HMGET', ids, unpack(names))
      if numbers.err then return end
      for i, name in ipairs(names) do
        if numbers[i] and (tonumber(numbers[i]) or 0) < number then held[#held + 1] = name end
      end
      names = held
    end
    if #names > 0 then redis.pcall('HDEL', ids, unpack(names)) end
  end
end

-- Updates the group's record after its waiting tasks have lost some. The deadline never moves back,
-- since of the tasks' own max delays only the shortest is known.
local function refresh_head(tasks, g)
  if g[WAITING] == 0 then
    g[MARKED] = 0
    return
  end
  g[FIRST] = entry_arrival(redis.call('LINDEX', tasks, g[CLAIMED]) or '')
  g[DEADLINE] = math.max(g[DEADLINE], g[FIRST] + g[DELAY])
  g[MARKED] = math.min(g[MARKED], g[WAITING])
end
