-- @include batch
-- @include group

-- The tasks of a batch that a script returns at once. The tasks of a larger batch are read in
-- slices by `read_tasks`, so that no script and no reply takes long.
local SLICE_TASKS = 1000
local SLICE_BYTES = 1024 * 1024
local STEP_BYTES = 64 * 1024  -- of entries that one LRANGE returns, about

-- Whether so many tasks, with so many bytes in all, are too much for one reply.
local function is_large(count, length) return count > SLICE_TASKS or length > SLICE_BYTES end

-- Reads tasks of a batch, from the one at this place on (from 0), up to so many and about so many
-- bytes. Returns the entries, or an error of Redis.
local function read_slice(tasks, g, batch, from, max_tasks, max_bytes)
  local first = batch[START] - g[BASE]
  local to = math.min(from + max_tasks, batch[TASK_COUNT])
  local step_bytes = math.min(STEP_BYTES, max_bytes)
  local step = math.max(1, math.floor(step_bytes * batch[TASK_COUNT] / math.max(1, batch[LENGTH])))
  local entries, length = {}, 0
  while from < to and length < max_bytes do
    local upto = math.min(from + step, to)
    local some = redis.pcall('LRANGE', tasks, first + from, first + upto - 1)
    if some.err then return some end
    for i = 1, #some do
      entries[#entries + 1] = some[i]
      length = length + #some[i]
    end
    from = upto
  end
  return entries
end
