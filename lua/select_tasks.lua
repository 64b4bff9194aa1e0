-- select_tasks: copies a slice of the tasks of a dead letter into two lists: those that are to be
-- requeued, and the others. The slices begin at the end of the letter. With the whole letter in
-- these lists, `requeue` exchanges them for it. A repeated call changes nothing. The lists expire
-- if no further call comes.
--
-- KEYS   1 state  2 dead  3 tasks of the dead letter  4 list of the selected tasks
--        5 list of the others
-- ARGV   1 batch id  2 SHA-1 of the record of the dead letter  3 number of tasks behind the slice
--        4 a '1' for each task of the slice that is selected, a '0' for each other one
-- Reply  number of tasks in both lists; 'CHANGED' if the dead letter is another one by now, or its
--        lists do not have the tasks behind the slice

-- @include arguments
-- @include call_chunked
-- @include schema

local state, dead, dead_tasks, selected, others = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, sha, behind, marks = ARGV[1], ARGV[2], whole_number(ARGV[3]), ARGV[4]
assert_arguments(#KEYS == 5 and #ARGV >= 4 and #marks > 0 and not string.find(marks, '[^01]'))
local LASTING_MS = 600000

local refused = refuse_schema(redis.call('HGET', state, 'schema'))
if refused then return refused end
local record = redis.call('HGET', dead, id)
if not record or redis.sha1hex(record) ~= sha then return 'CHANGED' end
local count = redis.call('LLEN', dead_tasks)
local copied = redis.call('LLEN', selected) + redis.call('LLEN', others)
if copied == behind + #marks then return copied end  -- the reply to the first call was lost
local first = count - behind - #marks
if copied ~= behind or first < 0 then return 'CHANGED' end

local entries = redis.call('LRANGE', dead_tasks, first, count - behind - 1)
local chosen, left = {}, {}
for i = #entries, 1, -1 do
  local list = string.sub(marks, i, i) == '1' and chosen or left
  list[#list + 1] = entries[i]
end
call_chunked('LPUSH', selected, chosen)
call_chunked('LPUSH', others, left)
redis.call('PEXPIRE', selected, LASTING_MS)
redis.call('PEXPIRE', others, LASTING_MS)
return copied + #entries
