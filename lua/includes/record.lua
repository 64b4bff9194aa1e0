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

local FOREIGN = 'WRONGTYPE foreign bytes in place of a record'
