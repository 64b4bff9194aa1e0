-- retry: gives batches back, to be claimed again later. Each holds back its group until then.
--
-- KEYS  1 state  2 groups  3 batches  4 claims  5 retry  6 due  7 ready
-- ARGV  1 fencing token, then for each batch: batch id, delay ms, 1 if the attempt counts or 0 if
--       the batch is returned through no fault of its own, error text
-- Reply for each batch: 1, or 0 if it was not claimed.

-- @include clock
-- @include schema
-- @include fence
-- @include record
-- @include group
-- @include batch

local state, groups, batches = KEYS[1], KEYS[2], KEYS[3]
local claims, retry, due, ready = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local now = clock()
local stale = fence(state, ARGV[1], now)
if stale then return stale end
-- Reads that refuse a foreign type before anything is written.
for _, index in ipairs({ retry, due, ready }) do redis.call('ZCARD', index) end

local reply = {}
for at = 2, #ARGV, 4 do
  local id = ARGV[at]
  local batch = read_batch(batches, id)
  local place = #reply + 1
  reply[place] = 0
  if batch and redis.call('ZREM', claims, id) == 1 then
    reply[place] = 1
    redis.call('ZADD', retry, now + tonumber(ARGV[at + 1]), id)
    if ARGV[at + 2] == '0' then batch[ATTEMPTS] = math.max(0, batch[ATTEMPTS] - 1) end
    if ARGV[at + 3] ~= '' then batch[ERROR] = ARGV[at + 3] end
    redis.call('HSET', batches, id, cmsgpack.pack(batch))
    local g = read_group(groups, batch[GROUP])
    if g then
      g[HELD] = g[HELD] + 1
      write_group(groups, batch[GROUP], g)
      schedule(due, ready, batch[GROUP], g, now)
    end
  end
end
return reply
