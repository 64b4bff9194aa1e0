-- plan_move: changes the record of a namespace for a move, if it is as the mover has read it.
--
-- KEYS   1 meta
-- ARGV   1 the schema that was read, '' for none  2 the plan that was read, '' for none
--        3 the new plan, '' for none, then pairs: field; value, '' to remove it
-- Reply  1, or 0 if it has changed meanwhile

-- @include arguments

local meta = KEYS[1]
local schema, plan, new_plan = ARGV[1], ARGV[2], ARGV[3]
assert_arguments(#KEYS == 1 and #ARGV >= 3 and #ARGV % 2 == 1)

local stored_schema, stored_plan = unpack(redis.call('HMGET', meta, 'schema', 'move'))
if (stored_schema or '') ~= schema or (stored_plan or '') ~= plan then return 0 end
local function set(field, value)
  if value == '' then
    redis.call('HDEL', meta, field)
  else
    redis.call('HSET', meta, field, value)
  end
end
set('move', new_plan)  -- the first write, which a full memory refuses, or one that needs none
for i = 4, #ARGV, 2 do set(ARGV[i], ARGV[i + 1]) end
return 1
