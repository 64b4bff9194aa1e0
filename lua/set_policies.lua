-- set_policies: sets and removes policies of a namespace, and gives the table another version.
--
-- KEYS   1 meta  2 policies
-- ARGV   1 most policies that there may be, then pairs: pattern; policy as JSON, '' to remove it
-- Reply  number of policies that were set or removed; the text 'MANY' if there would be too many,
--        with nothing written
--
-- The version is in the field `policies` of meta. Without pairs the script only writes a first one:
-- a producer that registers a partition from then on notes there that the namespace has policies.
-- That note has to be in all partitions before the first policy is set (`register_partition`).
--
-- A version is never used again, even if the data are removed: it is at least the time.

-- @include arguments
-- @include clock
-- @include full_memory
-- @include schema

local meta, policies = KEYS[1], KEYS[2]
local most = whole_number(ARGV[1])
assert_arguments(#KEYS == 2 and #ARGV % 2 == 1)

local schema, version = unpack(redis.call('HMGET', meta, 'schema', 'policies'))
local refused = refuse_schema(schema)
if refused then return refused end
local count, changed, sets = redis.call('HLEN', policies), 0, not version
local LONGEST_PATTERN, LONGEST_POLICY = 512, 4096  -- bytes
for i = 2, #ARGV, 2 do
  local pattern, policy = ARGV[i], ARGV[i + 1]
  assert_arguments(#pattern >= 1 and #pattern <= LONGEST_PATTERN and #policy <= LONGEST_POLICY)
  local there = redis.call('HEXISTS', policies, pattern)
  if policy ~= '' then
    sets = true
    count, changed = count + 1 - there, changed + 1
  else
    count, changed = count - there, changed + there
  end
end
if count > most then return 'MANY' end
if changed == 0 and (version or #ARGV > 1) then return 0 end
if not sets then write_in_full_memory(meta) end
local previous = tonumber(version or 0) or 0
if previous > 2^52 or previous < 0 then previous = 0 end  -- nothing that this script has written
redis.call('HSET', meta, 'policies', string.format('%.0f', math.max(previous + 1, clock())))
for i = 2, #ARGV, 2 do
  if ARGV[i + 1] ~= '' then
    redis.call('HSET', policies, ARGV[i], ARGV[i + 1])
  else
    redis.call('HDEL', policies, ARGV[i])
  end
end
return changed
