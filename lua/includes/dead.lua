-- @include batch
-- @include record

-- A dead letter: the record in the hash `dead`, a msgpack array with these places. Its tasks are in
-- a list of its own.
local DEAD_GROUP      = 1   -- the group key
local DEAD_TASK_COUNT = 2   -- number of its tasks
local DEAD_ATTEMPTS   = 3   -- ATTEMPTS of the batch
local DEAD_CREATED    = 4   -- CREATED of the batch
local DEAD_DIED       = 5   -- when it became a dead letter, ms
local DEAD_ERROR      = 6   -- error text
local DEAD_TRACEBACK  = 7   -- traceback, or ''
local DEAD_LENGTH     = 8   -- bytes of its tasks; of a large batch about
local DEAD_ENQUEUED   = 9   -- ENQUEUED of the batch; above 0, its merge result is kept
local DEAD_RESULT     = 10  -- RESULT of the batch if it is kept, else ''
local DEAD_REASON     = 11  -- REASON of the batch
local DEAD_OPENED     = 12  -- OPENED of the batch
local DEAD_DUE_AT     = 13  -- DUE_AT of the batch
local DEAD_BATCH_WEIGHT = 14  -- BATCH_WEIGHT of the batch
local DEAD_PARTED     = 15  -- PARTED of the batch; not '', its merge result is kept
local DEAD_TAKEN      = 16  -- id of the batch as which some of its tasks were requeued last, or ''
local DEAD_SPARE      = 17  -- '': for later releases, as a text that others leave as it is

local DEAD_HEADER = '\220\0\17'  -- an array of DEAD_SPARE places
local function decode_dead(packed)
  local letter = unpack_record(packed, DEAD_HEADER, DEAD_SPARE)
  assert_whole(letter, DEAD_TASK_COUNT, DEAD_DIED)
  assert_whole(letter, DEAD_LENGTH, DEAD_ENQUEUED)
  assert_whole(letter, DEAD_OPENED, DEAD_BATCH_WEIGHT)
  if type(letter[DEAD_GROUP]) == 'string' and type(letter[DEAD_ERROR]) == 'string'
    and type(letter[DEAD_RESULT]) == 'string' and type(letter[DEAD_REASON]) == 'string'
    and type(letter[DEAD_PARTED]) == 'string' and type(letter[DEAD_TAKEN]) == 'string'
    and type(letter[DEAD_SPARE]) == 'string' then
    return letter
  end
  error('foreign bytes')
end

-- Returns the record; nil if there is none; nil and true for foreign bytes.
local function read_dead(dead, id) return read_record(dead, id, decode_dead) end

-- The packed record of tasks of a batch; `letter` has batch, task_count,
-- length, died, error, traceback; enqueued, result and parted if the merge result is kept.
local function pack_dead(letter)
  local batch = letter.batch
  return cmsgpack.pack({
    [DEAD_GROUP] = batch[GROUP],
    [DEAD_TASK_COUNT] = letter.task_count,
    [DEAD_ATTEMPTS] = batch[ATTEMPTS],
    [DEAD_CREATED] = batch[CREATED],
    [DEAD_DIED] = letter.died,
    [DEAD_ERROR] = letter.error,
    [DEAD_TRACEBACK] = letter.traceback,
    [DEAD_LENGTH] = letter.length,
    [DEAD_ENQUEUED] = letter.enqueued or 0,
    [DEAD_RESULT] = letter.result or '',
    [DEAD_REASON] = batch[REASON],
    [DEAD_OPENED] = batch[OPENED],
    [DEAD_DUE_AT] = batch[DUE_AT],
    [DEAD_BATCH_WEIGHT] = batch[BATCH_WEIGHT],
    [DEAD_PARTED] = letter.parted or '',
    [DEAD_TAKEN] = '',
    [DEAD_SPARE] = '',
  })
end
