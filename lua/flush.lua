-- flush: makes groups due now.
--
-- KEYS  1 state  2 groups  3 due  4 ready
-- ARGV  1 wake channel  2 partition number, then group keys
-- Reply how many tasks were told to go.

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
for i = 3, #ARGV do
  told = told + flush_group(KEYS[2], KEYS[3], KEYS[4], ARGV[i], now)
end
if told > 0 then wake_leader(KEYS[1], ARGV[1], ARGV[2], now) end
return told
