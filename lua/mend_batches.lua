-- mend_batches: finds batches of a group that no index has, and a hold without a batch; mends both.
--
-- KEYS   1 state  2 groups  3 batches  4 claims  5 retry  6 suspects  7 due  8 ready
-- ARGV   1 wake channel  2 partition number  3 '1' to mend, '' to look only  4 group key
--        then the ids of all batches of the group, 300 at most
-- Reply  { HELD of the group, number of its batches in `retry` and `suspects`, batch id, ... }: the
--        ids of those that no index has; {} if these are not all batches of the group any more, or
--        if its record or one of theirs can't be read
--
-- All batches of a group together have as many tasks as its record says (CLAIMED), so it is known
-- whether the ids are complete. A lost batch is put into `retry`, to be claimed at once.

-- @include arguments
-- @include assert_type
-- @include batch
-- @include clock
-- @include counts
-- @include full_memory
-- @include group
-- @include schema
-- @include wake

local state, groups, batches = KEYS[1], KEYS[2], KEYS[3]
local claims, retry, suspects, due, ready = KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local channel, partition, mend, group = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4]
local FIRST_BATCH, MOST_BATCHES = 5, 300
assert_arguments(#KEYS == 8 and #ARGV >= 4 and #ARGV - 4 <= MOST_BATCHES)

local refused = refuse_schema(redis.call('HGET', state, 'schema'))
if refused then return refused end
assert_type('HLEN', { groups, batches })
assert_type('ZCARD', { claims, retry, suspects, due, ready })
local now = clock()
local g = read_group(groups, group)
if not g then return {} end

local tasks, held, first, last, lost = 0, 0, math.huge, 0, {}
for at = FIRST_BATCH, #ARGV do
  local id = ARGV[at]
  local batch = read_batch(batches, id)
  if not batch or batch[GROUP] ~= group then return {} end
  tasks = tasks + batch[TASK_COUNT]
  local retry_at = redis.call('ZSCORE', retry, id)
  local suspected = redis.call('ZSCORE', suspects, id)
  local is_lost = not retry_at and not suspected and not redis.call('ZSCORE', claims, id)
  if is_lost then lost[#lost + 1] = id end
  if retry_at or suspected then held = held + 1 end
  if is_lost or retry_at or suspected then
    first = math.min(first, batch[START])
    last = math.max(last, tonumber(retry_at) or now)
  end
end
if tasks ~= g[CLAIMED] then return {} end
local reply = { g[HELD], held, unpack(lost) }
if not mend or (#lost == 0 and held == g[HELD]) then return reply end

write_in_full_memory(state)
for _, id in ipairs(lost) do redis.call('ZADD', retry, string.format('%.0f', now), id) end
g[HELD], g[HELD_UNTIL] = held + #lost, last
if g[HELD] > 0 then g[HELD_FROM] = first end
write_group(groups, group, g)
schedule(due, ready, group, g, now)
if now < read_count(state, 'wake') then wake_leader(state, channel, partition) end
return reply
