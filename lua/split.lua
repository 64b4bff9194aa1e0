-- split: replaces a claimed batch whose merge failed by two batches with one half of its tasks
-- each, in the same order. They are put into retry, and hold their group until then. A repeated
-- call finds the batch gone.
--
-- KEYS   1 state  2 groups  3 batches  4 claims  5 retry  6 suspects  7 due  8 ready
--        9 result of the batch
-- ARGV   1 fencing token  2 batch id; the halves have '.0' and '.1' behind it  3 delay, ms
--        4 error text
-- Reply  1; 0 if the batch is not claimed, has one task or a merge result, or is half buried

-- @include arguments
-- @include assert_type
-- @include batch
-- @include clock
-- @include counts
-- @include fence
-- @include group
-- @include result

local state, groups, batches = KEYS[1], KEYS[2], KEYS[3]
local claims, retry, suspects, due, ready = KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local token, id, delay, error = ARGV[1], ARGV[2], whole_number(ARGV[3]), ARGV[4]
assert_arguments(#KEYS == 9 and #ARGV == 4)
local now = clock()
local stale = fence(state, token, now)
if stale then return stale end
assert_type('HLEN', { groups })
assert_type('ZCARD', { claims, retry, suspects, due, ready })

local batch = read_batch(batches, id)
if not batch or not redis.call('ZSCORE', claims, id) then return 0 end
if batch[TASK_COUNT] < 2 or batch[LETTER] ~= '' or batch[MERGED] ~= '' or has_result(batch) then
  return 0
end
local g = read_group(groups, batch[GROUP])
if not g then return 0 end

-- The half with so many tasks from the place `from` on. Its bytes and weight are estimated; the
-- sums of both halves are exact.
local first_count = math.ceil(batch[TASK_COUNT] / 2)
local first_share = first_count / batch[TASK_COUNT]
local function half(from, count)
  local function share(place)
    local first = math.floor(batch[place] * first_share)
    return from == 0 and first or batch[place] - first
  end
  local part = {}
  for place = GROUP, PARTED do part[place] = batch[place] end
  part[START], part[TASK_COUNT] = batch[START] + from, count
  part[LENGTH], part[BATCH_WEIGHT] = share(LENGTH), share(BATCH_WEIGHT)
  part[READ] = math.min(math.max(0, batch[READ] - from), count)
  part[ATTEMPTS], part[ERROR], part[DEATHS], part[ALONE] = 0, error, 0, 0
  part[RESULT] = ''
  return part
end

local function put_into_retry(part_id, part)
  redis.call('HSET', batches, part_id, cmsgpack.pack(part))
  redis.call('ZADD', retry, now + delay, part_id)
  hold(g, part, now + delay)
end

redis.call('HDEL', batches, id)
redis.call('ZREM', claims, id)
if batch[RESULT] ~= '' then redis.call('UNLINK', KEYS[9]) end  -- parts of one that was never whole
put_into_retry(id .. '.0', half(0, first_count))
put_into_retry(id .. '.1', half(first_count, batch[TASK_COUNT] - first_count))
write_group(groups, batch[GROUP], g)
schedule(due, ready, batch[GROUP], g, now)
add_count(state, 'failed', 1)
return 1
