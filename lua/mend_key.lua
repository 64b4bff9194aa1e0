-- mend_key: finds a key that belongs to no record of its partition, and mends that.
--
-- KEYS   1 state  2 groups  3 batches  4 dead  5 the key  6 tasks of a new dead letter
-- ARGV   1 what the key is: 'tasks', 'ids', 'result' or 'dead'  2 its group key or batch id
--        3 '1' to mend, '' to look only  4 id of the new dead letter  5 its error text
-- Reply  1 if the key belongs to nothing, else 0
--
-- Ids and results are removed. Tasks become a dead letter, so that none is lost. The tasks of a
-- dead letter without a record are left as they are: of which group they are is not known.

-- @include arguments
-- @include assert_type
-- @include clock
-- @include counts
-- @include dead
-- @include full_memory
-- @include schema

local state, groups, batches, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local key, dead_tasks = KEYS[5], KEYS[6]
local kind, name, mend, id, text = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4], ARGV[5]
assert_arguments(#KEYS == 6 and #ARGV == 5 and #name > 0 and #id > 0)
assert_arguments(kind == 'tasks' or kind == 'ids' or kind == 'result' or kind == 'dead')

local refused = refuse_schema(redis.call('HGET', state, 'schema'))
if refused then return refused end
assert_type('HLEN', { groups, batches, dead })
if redis.call('EXISTS', key) == 0 then return 0 end
local count = kind == 'tasks' and redis.call('LLEN', key) or 0
local is_owned
if kind == 'tasks' or kind == 'ids' then
  is_owned = redis.call('HEXISTS', groups, name) == 1
else
  is_owned = redis.call('HEXISTS', batches, name) + redis.call('HEXISTS', dead, name) > 0
end
if is_owned then return 0 end
if not mend or kind == 'dead' then return 1 end

local taken = kind == 'tasks'
  and redis.call('EXISTS', dead_tasks) + redis.call('HEXISTS', dead, id) > 0
if taken then return 0 end
write_in_full_memory(state)
if kind ~= 'tasks' then
  redis.call('UNLINK', key)
  return 1
end
local now = clock()
-- A positional table, in the order of the places in includes/batch.lua.
local batch = { name, 0, count, 0, now, '', 0, '', 0, count, 0, 0, '', '', '', now, now, count, '' }
redis.call('RENAME', key, dead_tasks)
redis.call('HSET', dead, id, pack_dead{
  batch = batch, task_count = count, length = 0, died = now, error = text, traceback = '',
})
add_count(state, 'dead', count)
return 1
