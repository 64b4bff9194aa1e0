-- commit: removes batches that are done and enqueues nothing: their merge returned None, or their
-- sink, outside this Redis, has the merged task already.
--
-- KEYS, ARGV, reply: as in includes/commit.lua. The queue has no key, the call no option, and each
-- batch 0 arguments.

-- @include commit

return commit{ queue_keys = 0, options = 0, arity = 1, entry_keys = 0 }
