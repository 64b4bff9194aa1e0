-- A stored task: 6 bytes of arrival time (ms, big endian), 1 byte of id length, the id, the body.
local function entry_prefix(now) return struct.pack('>I6', now) end

-- Bytes that are no entry have arrival 0 and an empty id: they must not stop a script.
local function entry_arrival(entry)
  if #entry < 7 then return 0 end
  local arrival = struct.unpack('>I6', entry)
  return arrival
end

local sub, byte = string.sub, string.byte
local function entry_id(entry) return sub(entry, 8, 7 + (byte(entry, 7) or 0)) end

local function total_bytes(entries)
  local total = 0
  for i = 1, #entries do total = total + #entries[i] end
  return total
end

-- Takes the ids of entries out of the hash of ids that wait.
local function forget_ids(ids, entries)
  local names = {}
  for i = 1, #entries do
    local entry = entries[i]
    names[i] = sub(entry, 8, 7 + (byte(entry, 7) or 0))
  end
  each('HDEL', ids, names)
end

-- After the head of the waiting tasks changed: their oldest arrival and their deadline. The
-- deadline never moves back, since each task's own max delay is known only by its minimum.
local function refresh_head(tasks, g)
  if g[WAITING] == 0 then
    g[FLUSH] = 0
    return
  end
  g[FIRST] = entry_arrival(redis.call('LINDEX', tasks, g[CLAIMED]) or '')
  g[DEADLINE] = math.max(g[DEADLINE], g[FIRST] + g[DELAY])
  g[FLUSH] = math.min(g[FLUSH], g[WAITING])
end
