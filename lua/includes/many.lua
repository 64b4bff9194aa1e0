-- @include call_chunked
-- @include group

-- What is read and written of many groups or batches with few calls: each call of Redis by a script
-- takes a microsecond or two, whatever it does.

-- Reads records by their fields, each of them once. `decode` is as for `read_record`.
-- Returns the records by their fields, and likewise true where foreign bytes are.
local function read_records(hash, fields, decode)
  local records, foreign = {}, {}
  for from = 1, #fields, CHUNK do
    local to = math.min(from + CHUNK - 1, #fields)
    local packed = redis.call('HMGET', hash, unpack(fields, from, to))
    for i = 1, #packed do
      local field = fields[from + i - 1]
      if packed[i] and not records[field] then
        local decoded, record = pcall(decode, packed[i])
        if decoded then records[field] = record else foreign[field] = true end
      end
    end
  end
  return records, foreign
end

-- Reads the scores of members of an index. Returns them in the same order, false for those that are
-- not in it.
local function read_scores(index, members)
  local scores = {}
  for from = 1, #members, CHUNK do
    local to = math.min(from + CHUNK - 1, #members)
    local found = redis.call('ZMSCORE', index, unpack(members, from, to))
    for i = 1, #found do scores[from + i - 1] = found[i] end
  end
  return scores
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

-- Puts each of the groups into the index of its state, as `schedule` does.
local function schedule_groups(due, ready, changed, now)
  local due_scores, ready_scores, not_due, not_ready = {}, {}, {}, {}
  for group, g in pairs(changed) do
    local due_score, score = scores_of(g, now)
    if due_score then
      due_scores[#due_scores + 1] = due_score
      due_scores[#due_scores + 1] = group
    else
      not_due[#not_due + 1] = group
    end
    if score then
      ready_scores[#ready_scores + 1] = score
      ready_scores[#ready_scores + 1] = group
    else
      not_ready[#not_ready + 1] = group
    end
  end
  call_chunked('ZADD', due, due_scores)
  call_chunked('ZADD', ready, ready_scores)
  call_chunked('ZREM', due, not_due)
  call_chunked('ZREM', ready, not_ready)
end
