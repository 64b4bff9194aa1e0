-- A record: a msgpack array with a fixed number of places, in a field of a hash.

-- `decode` makes the record of its bytes, by the functions below.
-- Returns the record; nil if the field does not exist; nil and true if it holds foreign bytes,
-- which must not stop a script.
local function read_record(hash, field, decode)
  local packed = redis.call('HGET', hash, field)
  if not packed then return nil end
  local decoded, record = pcall(decode, packed)
  if decoded then return record end
  return nil, true
end

local function unpack_record(packed, places)
  local record = cmsgpack.unpack(packed)
  if #record ~= places then error('foreign bytes') end
  return record
end

-- Raises an error unless these places hold whole numbers, which no sum, index or score can fail on.
-- Most time of a claim went into asking for the type of each value: the arithmetic raises an error
-- for all but numbers and texts, and a text is not equal to its number.
local LARGEST = 2^53
local function assert_whole(record, first, last)
  for place = first, last do
    local value = record[place]
    if value - value % 1 ~= value or value > LARGEST or value < -LARGEST then
      error('foreign bytes')
    end
  end
end

local FOREIGN = 'WRONGTYPE foreign bytes in place of a record'
