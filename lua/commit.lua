-- commit: removes batches that are done, and enqueues nothing: their merge returned None, or
-- their sink has the merged task already (it lives outside this Redis).
--
-- KEYS, ARGV, reply: see includes/commit.lua, with no key and no option of a sink; n is 0.

-- @include clock
-- @include schema
-- @include fence
-- @include record
-- @include counts
-- @include group
-- @include batch
-- @include refused
-- @include commit

return commit(nil, 0, 0, 1, 0)
