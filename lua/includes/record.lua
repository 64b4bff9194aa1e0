-- A record: a msgpack array of so many places, in a field of a hash. Returns nil if it is not there,
-- and nil and true if foreign bytes are in its place: they must not stop a script.
local function read_record(hash, field, places)
  local packed = redis.call('HGET', hash, field)
  if not packed then return nil end
  local read, record = pcall(cmsgpack.unpack, packed)
  if read and type(record) == 'table' and #record == places then return record end
  return nil, true
end

local FOREIGN = 'WRONGTYPE foreign bytes in place of a record'
