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

-- A table of all values behind the offset that `cmsgpack.unpack_limit` returns, if these are all
-- that there are.
local function collect(offset, ...)
  if offset ~= -1 then error('foreign bytes') end
  return { ... }
end

-- `header`: what msgpack puts before so many places. Takes half the time of cmsgpack.unpack, which
-- makes the table grow place by place.
local function unpack_record(packed, header, places)
  if string.sub(packed, 1, #header) ~= header then error('foreign bytes') end
  local record = collect(cmsgpack.unpack_limit(packed, places, #header))
  if #record ~= places then error('foreign bytes') end
  return record
end

-- Raises an error unless these places hold whole numbers, which no sum, index or score can fail on.
-- The comparisons raise an error for all but numbers. They take less time than to ask for the type.
local LARGEST = 2^53
local function assert_whole(record, first, last)
  for place = first, last do
    local value = record[place]
    if value > LARGEST or value < -LARGEST or value % 1 ~= 0 then error('foreign bytes') end
  end
end

local FOREIGN = 'WRONGTYPE foreign bytes in place of a record'
