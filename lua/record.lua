-- record: adds samples of partitions to the history of the namespace.
--
-- What a partition has counted since its last sample is added to the step that has just ended. A
-- sample that is not newer than the stored one changes nothing: so calls may be repeated, be late,
-- and come from several flushers. Samples of another number of partitions are void.
--
-- KEYS   1 samples  2 history
-- ARGV   1 number of partitions of the namespace
--        then for each partition: its number, then what `sample` replies
-- Reply  ms until the next call should come, shortly behind the end of a step

-- @include arguments
-- @include clock

local samples, history = KEYS[1], KEYS[2]
local FIRST_PARTITION, ARGS = 2, 9  -- of each partition
local MOST_PARTITIONS = 256
local FAR_AHEAD = 60000  -- ms; a stored sample that is further ahead is of another clock

-- The history is a string of two rings. Each step has the place of its number modulo the steps.
local FINE_MS, FINE_STEPS = 20000, 180
local COARSE_MS, COARSE_STEPS = 3600000, 720
local POINT_BYTES = 64
local POINT = '>dddddddd'  -- number of the step, four sums, three maxima
local ALL_BYTES = 57600  -- of both rings
local KEPT_MS = 2678400000  -- 31 days after the last step
local DELAY_MS = 500  -- behind the end of a step

local most_arguments = MOST_PARTITIONS * ARGS + 1
assert_arguments(#KEYS == 2 and #ARGV % ARGS == 1 and #ARGV <= most_arguments)
local given = {}
for i = 1, #ARGV do given[i] = whole_number(ARGV[i]) end
local now = clock()
redis.call('HLEN', samples)
local size = redis.call('STRLEN', history)

-- A sample is a msgpack array of these, and so are the totals of all partitions, in the field ''.
local TIME, ADDED, FLUSHED_TASKS, FLUSHED, FAILED = 1, 2, 3, 4, 5
local PENDING, DEAD_TASKS, OVERDUE, PARTITIONS = 6, 7, 8, 9
local partitions = given[1]
local function is_number(value)
  return type(value) == 'number' and math.abs(value) <= LARGEST_ARGUMENT  -- false for NaN
end
local function unpack_sample(packed)
  local decoded, sample = pcall(cmsgpack.unpack, packed or '')
  if not decoded or type(sample) ~= 'table' or #sample ~= PARTITIONS then return nil end
  for i = TIME, PARTITIONS do
    if not is_number(sample[i]) then return nil end
  end
  return sample[PARTITIONS] == partitions and sample or nil
end

-- The stored samples, in the order of the call, and the totals.
local numbers = {}
for at = FIRST_PARTITION, #ARGV, ARGS do numbers[#numbers + 1] = ARGV[at] end
numbers[#numbers + 1] = ''
local stored_samples = redis.call('HMGET', samples, unpack(numbers))
local totals = unpack_sample(stored_samples[#numbers])
  or { 0, 0, 0, 0, 0, 0, 0, 0, partitions }
local fields, sums, overdue = {}, { 0, 0, 0, 0 }, 0
local seen = {}
for nth = 1, #numbers - 1 do
  local number, sample = numbers[nth], {}
  for i = TIME, OVERDUE do sample[i] = given[FIRST_PARTITION + (nth - 1) * ARGS + i] end
  sample[PARTITIONS] = partitions
  local last = seen[number] or unpack_sample(stored_samples[nth])
  if not last or sample[TIME] > last[TIME] or last[TIME] > now + FAR_AHEAD then
    for i, place in ipairs({ ADDED, FLUSHED_TASKS, FLUSHED, FAILED }) do
      local counted = last and sample[place] - last[place] or 0
      sums[i] = sums[i] + math.max(0, counted)
    end
    -- A partition that was never seen counts from now on, with the tasks that it has.
    if not last then sums[1] = sums[1] + sample[PENDING] + sample[DEAD_TASKS] end
    for _, place in ipairs({ PENDING, DEAD_TASKS }) do
      totals[place] = math.max(0, totals[place] + sample[place] - (last and last[place] or 0))
    end
    overdue = math.max(overdue, sample[OVERDUE])
    fields[#fields + 1] = number
    fields[#fields + 1] = cmsgpack.pack(sample)
    seen[number] = sample
  end
end

-- Adds to a point of a ring; returns whether the step has just begun.
local function add_point(from, step_ms, steps)
  local step = math.floor((now - FINE_MS / 2) / step_ms)
  local place = from + step % steps * POINT_BYTES
  local point = { step, 0, 0, 0, 0, 0, 0, 0 }
  local stored = redis.call('GETRANGE', history, place, place + POINT_BYTES - 1)
  local begins = #stored ~= POINT_BYTES or struct.unpack('>d', stored) ~= step
  if not begins then point = { struct.unpack(POINT, stored) } end
  for i = 1, #sums do point[1 + i] = point[1 + i] + sums[i] end
  for i, value in ipairs({ totals[PENDING], totals[DEAD_TASKS], overdue }) do
    point[5 + i] = math.max(point[5 + i], value)
  end
  for i = 1, 8 do
    if not is_number(point[i]) then point[i] = 0 end  -- foreign bytes
  end
  redis.call('SETRANGE', history, place, struct.pack(POINT, unpack(point, 1, 8)))
  return begins
end

if #fields > 0 then
  redis.call('SETRANGE', history, 0, '')  -- changes nothing, and is refused if memory is full
  fields[#fields + 1] = ''
  fields[#fields + 1] = cmsgpack.pack(totals)
  redis.call('HSET', samples, unpack(fields))
  if size < ALL_BYTES then
    -- All bytes at once: a string that grows is given more memory than it needs.
    redis.call('SETRANGE', history, ALL_BYTES - 1, '\0')
  end
  add_point(0, FINE_MS, FINE_STEPS)
  if add_point(FINE_STEPS * POINT_BYTES, COARSE_MS, COARSE_STEPS) then
    redis.call('PEXPIRE', samples, KEPT_MS)
    redis.call('PEXPIRE', history, KEPT_MS)
  end
end
return FINE_MS - (now - DELAY_MS) % FINE_MS
