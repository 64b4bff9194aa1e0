-- enqueue_asynq: enqueues one merged task in Asynq where its queue has another slot than the batch.
-- The queue's name has been added to the set of Asynq's queues, which has a third slot, before.
--
-- KEYS, ARGV: see includes/asynq.lua
-- Reply 1, or 0 if the id, or its like in a queue of unique ones, is there already.

-- @include asynq

return asynq_refusal(1, 1) or asynq_enqueue(1, 1)
