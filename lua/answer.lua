-- answer: stores answers to tasks of a claimed batch that are too many for the call that ends it.
-- The outcome of the batch has to be fixed before: its merge result is stored apart, or it is half
-- buried. A repeated call stores the same answers again.
--
-- KEYS   1 state  2 batches  3 claims
--        then the key of each answer
-- ARGV   1 fencing token  2 batch id  3 channel of the answers
--        then for each answer: how long it is kept, ms; the record
-- Reply  1, or 0 if the batch is not claimed, or its outcome is not fixed

-- @include answers
-- @include arguments
-- @include batch
-- @include clock
-- @include fence
-- @include full_memory
-- @include result

local state, batches, claims = KEYS[1], KEYS[2], KEYS[3]
local token, id, channel = ARGV[1], ARGV[2], ARGV[3]
local FIRST_KEY, FIRST_ARG = 4, 4  -- of the first answer
local count = #KEYS - FIRST_KEY + 1
assert_arguments(count > 0 and #ARGV - FIRST_ARG + 1 == count * ANSWER_ARGS)
check_answers(FIRST_ARG, count)
local stale = fence(state, token, clock())
if stale then return stale end

local batch = read_batch(batches, id)
if not batch or not redis.call('ZSCORE', claims, id) then return 0 end
if not has_result(batch) and batch[LETTER] == '' then return 0 end
local message = {}
write_in_full_memory(state)
keep_answers(FIRST_KEY, FIRST_ARG, count, message)
announce_answers(channel, message)
return 1
