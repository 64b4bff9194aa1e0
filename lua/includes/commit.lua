-- @include answers
-- @include arguments
-- @include batch
-- @include call_chunked
-- @include clock
-- @include counts
-- @include fence
-- @include group
-- @include many
-- @include number_text
-- @include parts
-- @include record
-- @include result
-- @include server_errors

local LONG_LIST = 10000  -- LTRIM frees a list in the foreground: 12 ms for one of a million tasks

-- Takes the batch's tasks off the head of the list. A foreign type in place of the list stays as it
-- is. `acquire` has made sure that the leader may run LTRIM.
local function trim_batch(tasks, batch, g)
  if batch[TASK_COUNT] == g[WAITING] + g[CLAIMED] then
    if batch[TASK_COUNT] >= LONG_LIST and type(redis.pcall('LLEN', tasks)) == 'number'
      and type(redis.pcall('UNLINK', tasks)) == 'number' then
      return
    end
    redis.pcall('LTRIM', tasks, '1', '0')  -- the whole list, and so the key
  else
    redis.pcall('LTRIM', tasks, number_text(batch[TASK_COUNT]), '-1')
  end
end

local known_counts = {}  -- by their text: most batches have the same one

-- The number of arguments of a batch's entries. Of a slice also the number of entries before it,
-- and of those behind it, and what `read_parts` returns if tasks of the batch failed alone. And the
-- number of answers, if there are any.
local read_extent
function read_extent(argument)
  local count = known_counts[argument or '']
  if count then return count end
  local n, before, left = string.match(argument or '', '^(%d+) (%d+) (%d+)$')
  if n then return whole_number(n), whole_number(before), whole_number(left) end
  local slice, parts = string.match(argument or '', '^(%d+ %d+ %d+) (%d+ %d+ %d+[%d ]*)$')
  if slice then
    n, before, left = read_extent(slice)
    return n, before, left, read_parts(parts)
  end
  local extent, answers = string.match(argument or '', '^(%d[%d ]*) a(%d+)$')
  if extent then
    n, before, left, parts = read_extent(extent)
    return n, before, left, parts, whole_number(answers)
  end
  known_counts[argument or ''] = whole_number(argument)
  return known_counts[argument]
end

-- What the commit scripts share: enqueues batches and removes them. An entry is what a queue gets
-- for one merged task; a batch whose merge returned several tasks has several entries. They are
-- enqueued at once or, if they are many, in slices of several calls: the batch stays at the head of
-- its group until the last one, and ENQUEUED in its record says where to go on. `sink` has
--   enqueue     function(from, n, key): writes the entries whose n arguments begin at ARGV[from]
--               and whose keys begin at KEYS[key]; returns nil or a reply of redis.pcall
--   queue_keys  number of keys of the queue
--   options     number of arguments for the whole call
--   arity       number of arguments of an entry
--   entry_keys  number of keys of an entry
--
-- KEYS   1 state  2 groups  3 batches  4 claims  5 due  6 ready
--        then the keys of the queue
--        then for each batch: tasks of its group; result of the batch if this is a slice; keys of
--        the entries; the key of each answer
-- ARGV   1 fencing token
--        then the options
--        then for each batch: batch id, number of arguments of its entries (0: enqueue nothing),
--        these arguments. For a slice three numbers, such as '6000 500 1000', in place of the
--        second: that number, the number of entries before the slice, and of those behind it.
--        If tasks of the batch failed alone, six numbers: those of the last slice, such as
--        '0 0 0 3 0 2', and how many failed tasks this call makes dead letters of, how many there
--        are before and behind them; and behind the arguments of the entries for each: id of its
--        dead letter, place in the batch, error text. Then KEYS has behind the result of the batch
--        `dead` and the tasks of each letter.
--        Eight numbers if a batch is made of them that is tried again: also a delay in ms, and the
--        number of attempts that count as failed. Then behind the arguments of the entries are: id,
--        group key and error text of the new batch, and the place of each task; and KEYS has behind
--        the result `retry` and the tasks of the group of the new batch, which is its own
--        If tasks of the batch were submitted, ' a' and the number of answers behind these numbers,
--        such as '7 a2', and then behind all else: the channel of the answers, and for each how
--        long it is kept, ms, and the record (includes/answers.lua). They are stored with the reply
--        'OK'
--        A batch with a result in `result:BATCH` is always committed by slices, if only by one.
--        All but the last one need a whole result there, so that another leader can go on
-- Reply  for each batch one of
--        'OK'     enqueued and removed
--        'GONE'   committed before, or no longer in flight
--        'ORDER'  an older batch of the group has to leave first, or its result is not stored
--        the number of its entries that are enqueued: a slice was enqueued that is not the last
--        one, or nothing was done because another number has been enqueued than are before it
--        'PARTED 2' likewise, for the number of failed tasks that have left. They may be fewer than
--        the call names, if these have many bytes and its result is stored
--        or the text of the error with which the queue refused the batch.
--        An error that concerns the server refuses the whole call, with nothing written.
local function commit(sink)
  local enqueue, arity, entry_keys = sink.enqueue, sink.arity, sink.entry_keys
  local state, groups, batches, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
  local token = ARGV[1]
  local FIRST_KEY, FIRST_ARG = 7 + sink.queue_keys, 2 + sink.options  -- of the first batch
  local now = clock()
  local stale = fence(state, token, now)
  if stale then return stale end

  -- The keys and arguments of every batch, before any is written.
  local last_key, last_arg = FIRST_KEY - 1, FIRST_ARG - 1
  local ids = {}
  while ARGV[last_arg + 1] do
    ids[#ids + 1] = ARGV[last_arg + 1]
    local n, before, left, parts, answers = read_extent(ARGV[last_arg + 2])
    assert_arguments(n % arity == 0)
    last_arg = last_arg + 2 + n
    last_key = last_key + (before and 2 or 1)
    if parts then
      assert_arguments(left == 0)
      local from, key = last_arg + 1, last_key + 1
      last_arg, last_key = last_arg + parts.arguments, last_key + parts.keys
      assert_arguments(last_arg <= #ARGV and last_key <= #KEYS)
      check_parts(parts, key, from)
    end
    last_key = last_key + n / arity * entry_keys
    if answers then
      assert_arguments(ARGV[last_arg + 1])
      check_answers(last_arg + 2, answers)
      last_arg, last_key = last_arg + 1 + answers * ANSWER_ARGS, last_key + answers
    end
  end
  assert_arguments(last_arg == #ARGV and last_key == #KEYS)

  local batch_records = read_records(batches, ids, decode_batch)
  local claim_ends = read_scores(claims, ids)
  local names = {}
  for _, batch in pairs(batch_records) do names[#names + 1] = batch[GROUP] end
  local group_records = read_records(groups, names, decode_group)
  local changed = {}  -- the records of groups that batches have left
  local closed = {}  -- the ids of batches that have left
  local flushed, tasks_flushed, bytes_flushed = 0, 0, 0
  local tasks_parted = 0
  local written = false

  -- Whether a slice may be enqueued, or all of a batch if `before` is nil.
  local function may_go_on(batch, before, left, parts)
    if not before then return batch[RESULT] == '' end
    if parts and parts.left > 0 then return has_result(batch) end
    return left == 0 or has_result(batch)
  end

  local function commit_one(id, is_claimed, key, from, n, before, left, parts)
    local tasks, entries_key = KEYS[key], key + (before and 2 or 1)
    if parts then
      parts.key, parts.from = key + 2, from + n
      entries_key = entries_key + parts.keys
    end
    local batch = batch_records[id]
    if not batch or not is_claimed then return 'GONE' end
    local group = batch[GROUP]
    local g = group_records[group]
    if not g then return FOREIGN end
    -- A batch that is half buried has to be buried.
    if not is_head(g, batch) or batch[LETTER] ~= '' then return 'ORDER' end
    if batch[ENQUEUED] ~= (before or 0) then return batch[ENQUEUED] end
    if not may_go_on(batch, before, left, parts) then return 'ORDER' end
    local gone = before and parted(batch) or 0
    if gone ~= (parts and parts.before or 0) then return 'PARTED ' .. gone end
    if n > 0 then
      -- Before every other write: a batch that its queue refuses stays as it was.
      local reply = enqueue(from, n, entries_key)
      if type(reply) == 'table' and reply.err then return reply.err end
    end
    written = true
    if parts then gone = move_parts(state, groups, batches, tasks, batch, parts, now) end
    if before and (left > 0 or parts and gone < parts.before + parts.count + parts.left) then
      batch[ENQUEUED] = before + n / arity
      redis.call('HSET', batches, id, cmsgpack.pack(batch))
      return left > 0 and batch[ENQUEUED] or 'PARTED ' .. gone
    end
    if before then redis.call('UNLINK', KEYS[key + 1]) end
    trim_batch(tasks, batch, g)
    leave_group(g, batch)
    closed[#closed + 1], changed[group] = id, g
    batch_records[id] = nil
    flushed, tasks_flushed = flushed + 1, tasks_flushed + batch[TASK_COUNT]
    tasks_parted = tasks_parted + gone
    bytes_flushed = bytes_flushed + batch[LENGTH]
    return 'OK'
  end

  local reply = {}
  local channel, message = nil, nil
  local key, at = FIRST_KEY, FIRST_ARG
  while ARGV[at] do
    local id, from = ARGV[at], at + 2
    local n, before, left, parts, answers = read_extent(ARGV[at + 1])
    local status = commit_one(id, claim_ends[#reply + 1], key, from, n, before, left, parts)
    local refused = not written and server_error(status)
    if refused then return refused end
    reply[#reply + 1] = status
    at = from + n
    key = key + (before and 2 or 1) + n / arity * entry_keys
    if parts then
      at, key = at + parts.arguments, key + parts.keys
    end
    if answers then
      channel, message = ARGV[at], message or {}
      if status == 'OK' then keep_answers(key, at + 1, answers, message) end
      at, key = at + 1 + answers * ANSWER_ARGS, key + answers
    end
  end
  call_chunked('HDEL', batches, closed)
  call_chunked('ZREM', claims, closed)
  write_groups(groups, changed)
  if message then announce_answers(channel, message) end
  if flushed > 0 then
    add_count(state, 'claimed', -tasks_flushed)
    add_count(state, 'bytes', -bytes_flushed)
    add_count(state, 'flushed', flushed)
    add_count(state, 'flushed_tasks', tasks_flushed - tasks_parted)
  end
  return reply
end
