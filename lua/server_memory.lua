-- server_memory: how full the memory of the server is.
--
-- KEYS   1 any, for the node of a cluster that answers
-- ARGV   none
-- Reply  { used bytes, maxmemory in bytes or 0, maxmemory-policy }

-- @include arguments

assert_arguments(#KEYS == 1)
local section = 'memory'
local info = redis.call('INFO', section)
local function field(name) return string.match(info, '\n' .. name .. ':([^\r\n]*)') end
return {
  tonumber(field('used_memory') or 0), tonumber(field('maxmemory') or 0),
  field('maxmemory_policy') or '',
}
