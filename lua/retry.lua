-- retry: gives batches back, to be claimed again later. Each holds back its group until then. What
-- a batch was merged to is kept with it, so that it is not merged again.
--
-- KEYS  1 state  2 groups  3 batches  4 claims  5 retry  6 due  7 ready
-- ARGV  1 fencing token, then for each batch: batch id, delay ms ('': it stays claimed, and only
--       what it was merged to is stored), 1 if the attempt counts or 0 if the batch is returned
--       through no fault of its own, error text, what it was merged to ('': as it is stored)
-- Reply for each batch: 1, or 0 if it was not claimed.

-- @include clock
-- @include schema
-- @include fence
-- @include expect
-- @include record
-- @include group
-- @include batch

local state, groups, batches = KEYS[1], KEYS[2], KEYS[3]
local claims, retry, due, ready = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local now = clock()
local stale = fence(state, ARGV[1], now)
if stale then return stale end
expect('ZCARD', { retry, due, ready })

local reply = {}
for at = 2, #ARGV, 5 do
  local id, delay, merged = ARGV[at], ARGV[at + 1], ARGV[at + 4]
  local batch = read_batch(batches, id)
  local place = #reply + 1
  reply[place] = 0
  if batch and redis.call('ZSCORE', claims, id) then
    reply[place] = 1
    if merged ~= '' then
      -- The first attempt to enqueue it: those to merge it are over.
      if batch[MERGED] == '' then batch[ATTEMPTS] = 1 end
      batch[MERGED] = merged
    end
    if delay ~= '' then
      redis.call('ZREM', claims, id)
      redis.call('ZADD', retry, now + tonumber(delay), id)
      if ARGV[at + 2] == '0' then batch[ATTEMPTS] = math.max(0, batch[ATTEMPTS] - 1) end
      if ARGV[at + 3] ~= '' then batch[ERROR] = ARGV[at + 3] end
      local g = read_group(groups, batch[GROUP])
      if g then
        hold(g, batch, now + tonumber(delay))
        write_group(groups, batch[GROUP], g)
        schedule(due, ready, batch[GROUP], g, now)
      end
    end
    redis.call('HSET', batches, id, cmsgpack.pack(batch))
  end
end
return reply
