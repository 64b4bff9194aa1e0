-- report_status: stores what a flusher says of itself, for those who look. Nothing else reads it.
--
-- KEYS   1 status
-- ARGV   1 flusher id  2 the status, a text
-- Reply  1
--
-- A flusher repeats its status at intervals, so older ones are those of flushers that have died.

-- @include arguments
-- @include assert_type
-- @include call_chunked
-- @include clock
-- @include full_memory

local status = KEYS[1]
local flusher, text = ARGV[1], ARGV[2]
local LONGEST_ID, LONGEST_STATUS = 256, 8192
local KEPT_MS = 1500000  -- 2.5 times the interval: redisagg/flusher/status.py
assert_arguments(#KEYS == 1 and #ARGV == 2 and #flusher > 0 and #flusher <= LONGEST_ID
  and #text <= LONGEST_STATUS)
assert_type('HLEN', { status })
local now = clock()

local old = {}
local stored = redis.call('HGETALL', status)
for i = 1, #stored, 2 do
  local at = tonumber(string.match(stored[i + 1], '^(%d+) '))
  if not at or at < now - KEPT_MS or at > now + KEPT_MS then old[#old + 1] = stored[i] end
end
write_in_full_memory(status)
call_chunked('HDEL', status, old)
redis.call('HSET', status, flusher, string.format('%.0f', now) .. ' ' .. text)
return 1
