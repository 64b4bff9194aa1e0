-- A stored task: 6 bytes of arrival time (ms, big endian), 1 byte of id length, the id, the body.
-- If the highest bit of the first byte is set, 1 byte of length and a text (includes/limits.lua)
-- are between id and body: the task has other limits than its group's tasks have in common.
local WITH_LIMITS = 2^47

local function entry_prefix(now) return struct.pack('>I6', now) end

-- Bytes that are no entry have arrival 0 and an empty id: they must not stop a script.
local function entry_arrival(entry)
  if #entry < 7 then return 0 end
  local arrival = struct.unpack('>I6', entry)
  return arrival < WITH_LIMITS and arrival or arrival - WITH_LIMITS
end

local sub, byte = string.sub, string.byte
local function entry_id(entry) return sub(entry, 8, 7 + (byte(entry, 7) or 0)) end

-- The text of the limits of an entry; nil for those that the tasks of its group have in common.
local function entry_limits(entry)
  if (byte(entry, 1) or 0) < 128 then return nil end
  local at = 8 + (byte(entry, 7) or 0)
  return sub(entry, at + 1, at + (byte(entry, at) or 0))
end

local function total_bytes(entries)
  local total = 0
  for i = 1, #entries do total = total + #entries[i] end
  return total
end
