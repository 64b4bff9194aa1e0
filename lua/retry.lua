-- retry: puts batches into retry: they can be claimed again after a delay, and each holds its group
-- until then. The merge result of a batch is stored with it, so that it is not merged again.
--
-- KEYS   1 state  2 groups  3 batches  4 claims  5 retry  6 suspects  7 due  8 ready
-- ARGV   1 fencing token
--        then for each batch: batch id; delay, ms, or '' if the batch stays claimed and only its
--        merge result is stored; 1 if the attempt counts, 0 if it does not; error text; serialized
--        merge result, or '' to keep the stored one. One that is stored apart is always kept
-- Reply  for each batch 1, or 0 if it was not claimed

-- @include arguments
-- @include assert_type
-- @include batch
-- @include clock
-- @include counts
-- @include fence
-- @include group

local state, groups, batches = KEYS[1], KEYS[2], KEYS[3]
local claims, retry, suspects, due, ready = KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local INDEXES = { groups = groups, claims = claims, retry = retry, due = due, ready = ready }
local token = ARGV[1]
local FIRST_BATCH, BATCH_ARGS = 2, 5
local now = clock()
local stale = fence(state, token, now)
if stale then return stale end
assert_type('HLEN', { groups })
assert_type('ZCARD', { claims, retry, suspects, due, ready })
assert_arguments(#KEYS == 8 and (#ARGV - FIRST_BATCH + 1) % BATCH_ARGS == 0)
for at = FIRST_BATCH + 1, #ARGV, BATCH_ARGS do
  if ARGV[at] ~= '' then whole_number(ARGV[at]) end
end

local reply, failed = {}, 0
for at = FIRST_BATCH, #ARGV, BATCH_ARGS do
  local id, delay, counts, error, merged = unpack(ARGV, at, at + BATCH_ARGS - 1)
  local batch = read_batch(batches, id)
  local claimed = batch and redis.call('ZSCORE', claims, id)
  if claimed then
    if merged ~= '' and batch[RESULT] == '' then
      if batch[MERGED] == '' then batch[ATTEMPTS] = 0 end  -- those to merge it are over
      batch[MERGED] = merged
    end
    if delay ~= '' then
      if counts == '1' then
        batch[ATTEMPTS] = batch[ATTEMPTS] + 1
        failed = failed + 1
      end
      batch[DEATHS], batch[ALONE] = 0, 0
      if error ~= '' then batch[ERROR] = error end
      local g = read_group(groups, batch[GROUP])
      hold_in_retry(INDEXES, id, batch, g, now + tonumber(delay), now)
    end
    redis.call('HSET', batches, id, cmsgpack.pack(batch))
  end
  reply[#reply + 1] = claimed and 1 or 0
end
if failed > 0 then add_count(state, 'failed', failed) end
return reply
