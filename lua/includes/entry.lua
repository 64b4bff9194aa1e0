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
