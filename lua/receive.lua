-- receive: stores a slice of a list, hash or set that is being moved to this partition.
--
-- KEYS   1 state  2 the list, hash or set
-- ARGV   1 id of the mover  2 'list', 'hash' or 'set'
--        3 number of items that were stored before; 0 begins anew, but with a set
--        then the items; of a hash field, value, field, value, ...
-- Reply  1
--
-- A repeated call changes nothing.

-- @include arguments
-- @include assert_type
-- @include call_chunked
-- @include mover

local state, key = KEYS[1], KEYS[2]
local mover, kind, offset = ARGV[1], ARGV[2], whole_number(ARGV[3])
local FIRST = 4
assert_arguments(#KEYS == 2 and #ARGV >= FIRST - 1)
local ADD = { list = 'RPUSH', hash = 'HSET', set = 'SADD' }
local LENGTH = { list = 'LLEN', hash = 'HLEN', set = 'SCARD' }
assert_arguments(ADD[kind] ~= nil and (kind ~= 'hash' or (#ARGV - FIRST) % 2 == 1))
local items = {}
for at = FIRST, #ARGV do items[#items + 1] = ARGV[at] end
if kind == 'set' or offset > 0 then assert_type(LENGTH[kind], { key }) end
local stored = kind == 'list' and offset > 0 and redis.call('LLEN', key) or offset
local refused = refuse_mover(state, mover)
if refused then return refused end
if stored == offset + #items and #items > 0 and kind == 'list' then return 1 end
assert_arguments(stored == offset)
if kind ~= 'set' and offset == 0 then redis.call('UNLINK', key) end
call_chunked(ADD[kind], key, items)
return 1
