-- A record: a msgpack array with a fixed number of places, in a field of a hash.
-- Returns the record; nil if the field does not exist; nil and true if it holds foreign bytes,
-- which must not stop a script.
local function read_record(hash, field, places)
  local packed = redis.call('HGET', hash, field)
  if not packed then return nil end
  local unpacked, record = pcall(cmsgpack.unpack, packed)
  if unpacked and type(record) == 'table' and #record == places then return record end
  return nil, true
end

-- Whether these places of a record hold whole numbers, which no sum, index or score can fail on.
local LARGEST = 2^53
local function are_whole(record, first, last)
  for place = first, last do
    local value = record[place]
    if type(value) ~= 'number' or value % 1 ~= 0 or value > LARGEST or value < -LARGEST then
      return false
    end
  end
  return true
end

local FOREIGN = 'WRONGTYPE foreign bytes in place of a record'
