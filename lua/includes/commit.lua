-- What all commit scripts share. Each hands over `enqueue(from, n, key)`, which writes the n
-- arguments at ARGV[from] into its queue by redis.pcall and returns the reply; `key` is the place in
-- KEYS of the first key of these entries. An entry has `arity` arguments and `entry_keys` keys: a
-- merge that returned several tasks has several entries.
--
-- KEYS  1 state  2 groups  3 batches  4 claims  5 due  6 ready
--       `queue_keys` keys of the sink, then for each batch: tasks of its group, keys of its entries
-- ARGV  1 fencing token  `options` arguments of the sink
--       then for each batch: batch id, number n of its arguments (0: enqueue nothing), and they
-- Reply for each batch: 'OK', 'GONE' (committed before, or no longer in flight), 'ORDER' (an older
--       batch of its group has to go first), or the error with which the queue refused it. An
--       error that is the server's refuses the whole call, with nothing written.
local function commit(enqueue, queue_keys, options, arity, entry_keys)
  local state, groups, batches, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
  local due, ready = KEYS[5], KEYS[6]
  local now = clock()
  local stale = fence(state, ARGV[1], now)
  if stale then return stale end

  local records = {}  -- of the groups touched: each is read and written once
  local flushed, tasks_flushed, bytes_flushed = 0, 0, 0

  local function commit_one(id, key, from, n)
    local batch = read_batch(batches, id)
    if not batch or not redis.call('ZSCORE', claims, id) then return 'GONE' end
    local group = batch[GROUP]
    local g = records[group] or read_group(groups, group)
    if not g then return FOREIGN end
    if not is_head(g, batch) then return 'ORDER' end
    if n > 0 then
      -- Before everything else: a queue that refuses leaves the batch as it was.
      local reply = enqueue(from, n, key + 1)
      if type(reply) == 'table' and reply.err then return reply.err end
    end
    trim_batch(KEYS[key], batch, g)
    close_batch(batches, claims, id, batch, g)
    records[group] = g
    flushed, tasks_flushed = flushed + 1, tasks_flushed + batch[COUNT]
    bytes_flushed = bytes_flushed + batch[LENGTH]
    return 'OK'
  end

  local reply = {}
  local at, key = 2 + options, 7 + queue_keys
  while ARGV[at] do
    local n = tonumber(ARGV[at + 1])
    local status = commit_one(ARGV[at], key, at + 2, n)
    local refused = flushed == 0 and refusal_of_all(status)
    if refused then return refused end
    reply[#reply + 1] = status
    at = at + 2 + n
    key = key + 1 + n / arity * entry_keys
  end
  for group, g in pairs(records) do
    write_group(groups, group, g)
  end
  if flushed > 0 then
    add_count(state, 'claimed', -tasks_flushed)
    add_count(state, 'bytes', -bytes_flushed)
    add_count(state, 'flushed', flushed)
    add_count(state, 'flushed_tasks', tasks_flushed)
  end
  return reply
end
