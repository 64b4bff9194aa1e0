-- disown: removes groups and dead letters that another partition has adopted.
--
-- KEYS   1 state  2 groups  3 batches  4 claims  5 retry  6 suspects  7 due  8 ready  9 dead
--        then all other keys of the groups and dead letters
-- ARGV   1 id of the mover
--        then for each group: 'group'; group key; number of its batches; their ids
--        or for a dead letter: 'letter'; id
-- Reply  number of groups and dead letters that were removed
--
-- A repeated call changes nothing.

-- @include arguments
-- @include assert_type
-- @include batch
-- @include counts
-- @include dead
-- @include group
-- @include mover

local state, groups, batches, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local retry, suspects, due, ready, dead = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local FIRST_KEY = 10
local mover = ARGV[1]
assert_arguments(#KEYS >= FIRST_KEY - 1 and #ARGV >= 1)

-- Reads the arguments of all sections, before the first write.
local sections, at = {}, 2
while at <= #ARGV do
  local kind, name = ARGV[at], ARGV[at + 1]
  assert_arguments((kind == 'group' or kind == 'letter') and name)
  local section = { kind = kind, name = name, ids = {} }
  at = at + 2
  if kind == 'group' then
    local count = whole_number(ARGV[at])
    assert_arguments(at + count <= #ARGV)
    for i = at + 1, at + count do section.ids[#section.ids + 1] = ARGV[i] end
    at = at + count + 1
  end
  sections[#sections + 1] = section
end
assert_type('HLEN', { groups, batches, dead })
assert_type('ZCARD', { claims, retry, suspects, due, ready })
local refused = refuse_mover(state, mover)
if refused then return refused end

local function disown_group(section)
  local g = read_group(groups, section.name)
  local bytes = g and g[BYTES] or 0
  for _, id in ipairs(section.ids) do
    local batch = read_batch(batches, id)
    bytes = bytes + (batch and batch[LENGTH] or 0)
    redis.call('HDEL', batches, id)
    for _, index in ipairs({ claims, retry, suspects }) do redis.call('ZREM', index, id) end
  end
  redis.call('ZREM', due, section.name)
  redis.call('ZREM', ready, section.name)
  local removed = redis.call('HDEL', groups, section.name)
  if g then
    add_count(state, 'waiting', -g[WAITING])
    add_count(state, 'claimed', -g[CLAIMED])
    add_count(state, 'bytes', -bytes)
  end
  return removed
end

local function disown_letter(section)
  local letter = read_dead(dead, section.name)
  if letter then add_count(state, 'dead', -letter[DEAD_TASK_COUNT]) end
  return redis.call('HDEL', dead, section.name)
end

local removed = 0
for _, section in ipairs(sections) do
  removed = removed + (section.kind == 'group' and disown_group(section) or disown_letter(section))
end
for i = FIRST_KEY, #KEYS do redis.call('UNLINK', KEYS[i]) end
return removed
