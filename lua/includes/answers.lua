-- @include arguments

-- Answers: what became of tasks that were submitted, so that their producers can read it. A body
-- with five members asks for one; the fifth is the time (ms) for which it is kept, in five bytes.
-- Each answer has a key of its own, which expires, and is announced on a channel: a packed array of
-- keys, each with its record, or with '' if the record is too long for a message.
local ANSWER_ARGS = 2  -- of each answer: how long it is kept, ms; the record
local MOST_ANNOUNCED = 1024  -- bytes of a record that is part of the message

-- Checks the arguments of answers from ARGV[from] on, before anything is written.
local function check_answers(from, count)
  for i = from, from + ANSWER_ARGS * (count - 1), ANSWER_ARGS do
    assert_arguments(whole_number(ARGV[i]) > 0 and ARGV[i + 1])
  end
end

-- Stores answers whose keys begin at KEYS[key], and adds them to the message. Called after the
-- first write, so nothing may be raised: a user who may not write them loses the answers only.
local function keep_answers(key, from, count, message)
  for i = 0, count - 1 do
    local at = from + ANSWER_ARGS * i
    local name, record = KEYS[key + i], ARGV[at + 1]
    redis.pcall('SET', name, record, 'PX', ARGV[at])
    message[#message + 1] = name
    message[#message + 1] = #record <= MOST_ANNOUNCED and record or ''
  end
end

local function announce_answers(channel, message)
  if #message > 0 then redis.pcall('PUBLISH', channel, cmsgpack.pack(message)) end
end

-- How long the answer of a stored task is kept, ms; nil if it was not submitted.
local function submitted_ms(entry)
  local start = 8 + (string.byte(entry, 7) or 0)
  if (string.byte(entry) or 0) >= 0x80 then start = start + 1 + (string.byte(entry, start) or 0) end
  if #entry < start + 5 or string.byte(entry, start) ~= 0x95 or string.byte(entry, -5) ~= 0xce then
    return nil
  end
  local keep_ms = struct.unpack('>I4', entry, #entry - 3)
  return keep_ms > 0 and keep_ms or nil
end
