-- enqueue_asynq: enqueues one merged task in Asynq, on a cluster where the queue and the batch are
-- in different slots. The caller has added the queue's name to the set of Asynq's queues, which is
-- in a third slot.
--
-- KEYS   4, see includes/asynq.lua
-- ARGV   6, see includes/asynq.lua
-- Reply  1, or 0 if the id is in Asynq already or the lock of a unique task is taken

-- @include arguments
-- @include asynq

local FIRST_KEY, FIRST_ARG = 1, 1
assert_arguments(#KEYS == ASYNQ_KEYS and #ARGV == ASYNQ_ARITY)
return asynq_refusal(FIRST_KEY, FIRST_ARG) or asynq_enqueue(FIRST_KEY, FIRST_ARG)
