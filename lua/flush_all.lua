-- flush_all: makes everything that waits in a partition due now, a bounded number of groups a call.
--
-- KEYS  1 state  2 groups  3 due  4 ready
-- ARGV  1 wake channel  2 partition number  3 cursor, '0' at first  4 about how many groups
-- Reply { cursor for the next call, '0' when all groups were seen; how many tasks were told to go }

-- @include clock
-- @include schema
-- @include record
-- @include counts
-- @include group
-- @include flush
-- @include wake

local newer = refuse_schema(redis.call('HGET', KEYS[1], 'schema'))
if newer then return newer end
local now = clock()
local told = 0
local page = redis.call('HSCAN', KEYS[2], ARGV[3], 'COUNT', ARGV[4])
local fields = page[2]
for i = 1, #fields, 2 do
  told = told + flush_group(KEYS[2], KEYS[3], KEYS[4], fields[i], now)
end
if told > 0 then wake_leader(KEYS[1], ARGV[1], ARGV[2], now) end
return { page[1], told }
