-- @include call_chunked
-- @include group

-- What is read and written of many groups or batches with few calls: each call of Redis by a script
-- takes a microsecond or two, whatever it does.

-- Reads records by their fields, each of them once. `decode` is as for `read_record`.
-- Returns the records by their fields, and likewise true where foreign bytes are.
local function read_records(hash, fields, decode)
  local once, known = {}, {}
  for i = 1, #fields do
    local field = fields[i]
    if not known[field] then once[#once + 1], known[field] = field, true end
  end
  local records, foreign = {}, {}
  for from = 1, #once, CHUNK do
    local to = math.min(from + CHUNK - 1, #once)
    local packed = redis.call('HMGET', hash, unpack(once, from, to))
    for i = 1, #packed do
      if packed[i] then
        local field = once[from + i - 1]
        local decoded, record = pcall(decode, packed[i])
        if decoded then records[field] = record else foreign[field] = true end
      end
    end
  end
  return records, foreign
end

-- Stores the records of groups, which `changed` has by their keys; removes those that are over.
local function write_groups(groups, changed)
  local stored, over = {}, {}
  for group, g in pairs(changed) do
    if is_over(g) then
      over[#over + 1] = group
    else
      stored[#stored + 1] = group
      stored[#stored + 1] = cmsgpack.pack(g)
    end
  end
  call_chunked('HDEL', groups, over)
  call_chunked('HSET', groups, stored)
end

-- Notes the score of a group in an index; nil if it does not belong there.
local function note_score(index, group, score)
  if score then
    index.scores[#index.scores + 1] = score
    index.scores[#index.scores + 1] = group
  else
    index.gone[#index.gone + 1] = group
  end
end

-- Puts each of the groups into the index of its state, as `schedule` does.
local function schedule_groups(due, ready, changed, now)
  local in_due, in_ready = { scores = {}, gone = {} }, { scores = {}, gone = {} }
  for group, g in pairs(changed) do
    local due_score, score = scores_of(g, now)
    note_score(in_due, group, due_score)
    note_score(in_ready, group, score)
  end
  call_chunked('ZADD', due, in_due.scores)
  call_chunked('ZADD', ready, in_ready.scores)
  call_chunked('ZREM', due, in_due.gone)
  call_chunked('ZREM', ready, in_ready.gone)
end
