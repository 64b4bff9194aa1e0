-- adopt: takes groups and dead letters over that are being moved to this partition.
--
-- KEYS   1 state  2 groups  3 batches  4 claims  5 retry  6 suspects  7 due  8 ready  9 dead
--        then for each group: its tasks, its ids
-- ARGV   1 id of the mover
--        then for each group: 'group'; group key; record; number of entries, or '-' if `receive`
--        has stored tasks and ids; the entries; number of ids; for each id: id, number; number of
--        batches; for each batch: id, record, 'claims', 'retry' or 'suspects', score
--        or for a dead letter, whose tasks are stored: 'letter'; id; record
-- Reply  number of groups and dead letters that were not here before
--
-- The groups keep all that is in their records. A repeated call changes nothing.

-- @include arguments
-- @include assert_type
-- @include batch
-- @include call_chunked
-- @include clock
-- @include counts
-- @include dead
-- @include group
-- @include mover

local state, groups, batches, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local retry, suspects, due, ready, dead = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local FIRST_KEY = 10
local INDEXES = { claims = claims, retry = retry, suspects = suspects }
local mover = ARGV[1]
assert_arguments(#KEYS >= FIRST_KEY - 1 and #ARGV >= 1)
local now = clock()

local at = 2
local function next_argument()
  at = at + 1
  return ARGV[at - 1]
end
local function next_arguments(count)
  assert_arguments(at + count - 1 <= #ARGV)
  local some = {}
  for i = at, at + count - 1 do some[#some + 1] = ARGV[i] end
  at = at + count
  return some
end

local function read_batches(count)
  local found = {}
  for _ = 1, count do
    local id, packed, index, score = unpack(next_arguments(4))
    local score_number = tonumber(score)
    assert_arguments(INDEXES[index] and score_number and math.abs(score_number) < 2^62)
    found[#found + 1] = {
      id = id, packed = packed, index = INDEXES[index], score = score, batch = decode_batch(packed),
    }
  end
  return found
end

local key = FIRST_KEY
local function read_group_section()
  local section = { name = next_argument(), packed = next_argument() }
  assert_arguments(section.name and section.packed and key + 1 <= #KEYS)
  section.g = decode_group(section.packed)
  section.tasks, section.ids = KEYS[key], KEYS[key + 1]
  key = key + 2
  local count = next_argument()
  section.stored = count == '-'
  if section.stored then assert_type('LLEN', { section.tasks }) end
  section.entries = next_arguments(section.stored and 0 or whole_number(count))
  section.numbers = next_arguments(2 * whole_number(next_argument()))
  section.batches = read_batches(whole_number(next_argument()))
  return section
end

-- Reads the arguments of all sections, before the first write.
local sections = {}
while at <= #ARGV do
  local kind = next_argument()
  if kind == 'group' then
    sections[#sections + 1] = read_group_section()
  else
    assert_arguments(kind == 'letter' and at + 1 <= #ARGV)
    local id, packed = next_argument(), next_argument()
    sections[#sections + 1] = { letter = id, packed = packed, dead = decode_dead(packed) }
  end
end
assert_arguments(key == #KEYS + 1)
assert_type('HLEN', { groups, batches, dead })
assert_type('ZCARD', { claims, retry, suspects, due, ready })
local refused = refuse_mover(state, mover)
if refused then return refused end

local function adopt_group(section)
  local g = section.g
  if not section.stored then
    redis.call('UNLINK', section.tasks, section.ids)
    call_chunked('RPUSH', section.tasks, section.entries)
    call_chunked('HSET', section.ids, section.numbers)
  end
  local bytes = g[BYTES]
  for _, each in ipairs(section.batches) do
    redis.call('HSET', batches, each.id, each.packed)
    redis.call('ZADD', each.index, each.score, each.id)
    bytes = bytes + each.batch[LENGTH]
  end
  redis.call('HSET', groups, section.name, section.packed)
  schedule(due, ready, section.name, g, now)
  add_count(state, 'waiting', g[WAITING])
  add_count(state, 'claimed', g[CLAIMED])
  add_count(state, 'bytes', bytes)
end

local adopted = 0
for _, section in ipairs(sections) do
  if section.letter then
    if redis.call('HSETNX', dead, section.letter, section.packed) == 1 then
      add_count(state, 'dead', section.dead[DEAD_TASK_COUNT])
      adopted = adopted + 1
    end
  elseif redis.call('HEXISTS', groups, section.name) == 0 then
    adopt_group(section)
    adopted = adopted + 1
  end
end
return adopted
