-- The number of partitions of the namespace, in each partition's state. A group belongs to a
-- partition by this number, so callers with different numbers would put one group into two.
--
-- Returns nil, or the error reply that the script has to return. `stored` is the field `partitions`
-- of the state, `place` the partition number/number of partitions of the caller, such as 3/16.
-- Without the field the namespace is new or its data were removed. The caller then registers the
-- namespace and calls `register_partition`.
--
-- Once the namespace has policies, the field is the number and ' policies'. The place of a producer
-- that has read them ends like that too. If `of_producer`, another one is refused, and has to read
-- them first: so those who use no policies need not ask for them.
local function refuse_partitions(stored, place, of_producer)
  if stored and string.sub(place, -1 - #stored) == '/' .. stored then return nil end
  local own, reads_policies = string.match(place, '^%d+/(%d+)(.*)$')
  if not own or reads_policies ~= '' and reads_policies ~= ' policies' then
    return redis.error_reply('ERR PARTITION/PARTITIONS: ' .. place)
  end
  if stored == own then return nil end
  if stored == own .. ' policies' then
    if not of_producer then return nil end
    return redis.error_reply('POLICIES the namespace has policies, which the caller has not read')
  end
  return redis.error_reply(
    'UNREGISTERED the state is of ' .. (stored or 'unknown') .. ' partitions, not ' .. own)
end

-- The partition number in `place`.
local function partition_number(place) return string.match(place, '^%d+') end
