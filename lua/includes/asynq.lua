-- A task in Asynq, written as Asynq's client writes it (internal/rdb/rdb.go of v0.26.0: Enqueue,
-- EnqueueUnique, Schedule, ScheduleUnique). Asynq's servers read these fields by their names. A
-- task has these keys, KEYS[key + place], and arguments, ARGV[at + place].
local TASK      = 0  -- the task's hash
local PENDING   = 1  -- list of the ids that wait
local SCHEDULED = 2  -- sorted set of the ids that wait for their time
local UNIQUE    = 3  -- the lock of a unique task; not used without LOCK_SECONDS
local ASYNQ_KEYS = 4

local QUEUE        = 0  -- name of the queue
local TASK_ID      = 1
local MESSAGE      = 2  -- the packed task
local LOCK_SECONDS = 3  -- lifetime of the lock, seconds, or ''
local PROCESS_AT   = 4  -- when to process the task, Unix time in ms, or ''
local PROCESS_IN   = 5  -- the same in ms from now, or ''
local ASYNQ_ARITY = 6

local asynq_seconds, asynq_microseconds = unpack(redis.call('TIME'))
local asynq_now_ms = asynq_seconds * 1000 + math.floor(asynq_microseconds / 1000)
-- Nanoseconds, put together as text: a Lua number has too few digits.
local asynq_pending_since = asynq_seconds .. string.format('%06d000', asynq_microseconds)

-- The time for which the task is scheduled, ms, or nil: at once. Asynq schedules a task only for a
-- time to come.
local function asynq_process_at(at)
  local process_at, process_in = tonumber(ARGV[at + PROCESS_AT]), tonumber(ARGV[at + PROCESS_IN])
  if process_in then process_at = asynq_now_ms + process_in end
  if process_at and process_at > asynq_now_ms then return process_at end
end

-- Whether the time of an argument, in seconds or ms, is one that Redis takes; '' stands for none.
local function asynq_is_time(argument)
  local time = tonumber(argument)
  return argument == '' or time and time > -2^42 and time < 2^42
end

-- The error with which Redis would refuse the task, for a foreign type or a time that is none, or
-- nil. Only reads.
local function asynq_refusal(key, at)
  local reply
  local lock_seconds = ARGV[at + LOCK_SECONDS]
  if not (asynq_is_time(ARGV[at + PROCESS_AT]) and asynq_is_time(ARGV[at + PROCESS_IN]))
    or not asynq_is_time(lock_seconds) or lock_seconds ~= '' and tonumber(lock_seconds) < 1 then
    return redis.error_reply('ERR a time of the task is no number')
  end
  if asynq_process_at(at) then
    reply = redis.pcall('ZCARD', KEYS[key + SCHEDULED])
  else
    reply = redis.pcall('LLEN', KEYS[key + PENDING])
  end
  if type(reply) == 'table' and reply.err then return reply end
end

-- Enqueues the task. If its id is in Asynq already, or the lock of a unique task is taken, nothing
-- changes. Asynq's client raises an error then; here the task counts as enqueued.
-- Returns 1, 0 if nothing was enqueued, or the error with which Redis refused the task.
local function asynq_enqueue(key, at)
  local task, unique = KEYS[key + TASK], KEYS[key + UNIQUE]
  local id, message = ARGV[at + TASK_ID], ARGV[at + MESSAGE]
  if redis.call('EXISTS', task) == 1 then return 0 end
  local process_at, lock_seconds = asynq_process_at(at), tonumber(ARGV[at + LOCK_SECONDS])
  if lock_seconds then
    if process_at then
      lock_seconds = math.floor((process_at - asynq_now_ms) / 1000 + lock_seconds)
    end
    local locked = redis.pcall('SET', unique, id, 'NX', 'EX', string.format('%d', lock_seconds))
    if not locked then return 0 end
    if locked.err then return locked end
  end

  local task_state = process_at and 'scheduled' or 'pending'
  local written
  if process_at then
    written = redis.pcall('HSET', task, 'msg', message, 'state', task_state)
  else
    written = redis.pcall('HSET', task, 'msg', message, 'state', task_state,
      'pending_since', asynq_pending_since)
  end
  if type(written) == 'table' then return written end
  if lock_seconds then redis.call('HSET', task, 'unique_key', unique) end
  if process_at then
    local score = string.format('%d', math.floor(process_at / 1000))
    redis.call('ZADD', KEYS[key + SCHEDULED], score, id)
  else
    redis.call('LPUSH', KEYS[key + PENDING], id)
  end
  return 1
end
