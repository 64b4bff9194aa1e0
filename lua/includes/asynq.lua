-- A task in Asynq, written as its client writes it (internal/rdb/rdb.go of v0.26.0: Enqueue,
-- EnqueueUnique, Schedule, ScheduleUnique; the field names are read by its servers).
--
-- Keys, from KEYS[key] on: the task's hash, pending, scheduled, unique (not used without a TTL)
-- Arguments, from ARGV[at] on: queue, task id, message, seconds for which the task keeps its like
-- out or '', when to process it: at (Unix time) and in, ms, or ''
local ASYNQ_KEYS, ASYNQ_ARITY = 4, 6

local asynq_clock = redis.call('TIME')
local asynq_now_ms = asynq_clock[1] * 1000 + math.floor(asynq_clock[2] / 1000)

-- When the task is to be processed, ms, or nil: at once. Asynq has it wait only if that is to come.
local function asynq_process_at(at)
  local moment, delay = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  if delay then moment = asynq_now_ms + delay end
  if moment and moment > asynq_now_ms then return moment end
end

-- The error with which Redis would refuse the task for a foreign type, or nil; only reads.
local function asynq_refusal(key, at)
  local reply
  if asynq_process_at(at) then
    reply = redis.pcall('ZCARD', KEYS[key + 2])
  else
    reply = redis.pcall('LLEN', KEYS[key + 1])
  end
  if type(reply) == 'table' and reply.err then return reply end
end

-- Enqueues the task. An id that is there, or its like in a queue of unique ones, stays as it is:
-- Asynq's client has an error for that, and here it is in the queue already.
-- Returns 1, 0 if nothing was enqueued, or the error with which Redis refused it.
local function asynq_enqueue(key, at)
  local task, id, unique = KEYS[key], ARGV[at + 1], KEYS[key + 3]
  if redis.call('EXISTS', task) == 1 then return 0 end
  local process_at, ttl = asynq_process_at(at), tonumber(ARGV[at + 3])
  if ttl then
    if process_at then ttl = math.floor((process_at - asynq_now_ms) / 1000 + ttl) end
    local locked = redis.pcall('SET', unique, id, 'NX', 'EX', string.format('%d', ttl))
    if not locked then return 0 end
    if locked.err then return locked end
  end

  local state = process_at and 'scheduled' or 'pending'
  local written = redis.pcall('HSET', task, 'msg', ARGV[at + 2], 'state', state)
  if type(written) == 'table' then return written end
  if ttl then redis.call('HSET', task, 'unique_key', unique) end
  if process_at then
    redis.call('ZADD', KEYS[key + 2], string.format('%d', math.floor(process_at / 1000)), id)
  else
    -- Nanoseconds: more digits than a Lua number holds.
    redis.call('HSET', task, 'pending_since', asynq_clock[1] .. string.format('%06d000', asynq_clock[2]))
    redis.call('LPUSH', KEYS[key + 1], id)
  end
  return 1
end
