-- upcoming: a page of the groups that wait, in the order of the indexes.
--
-- KEYS   1 ready  2 due
-- ARGV   1 number of groups to skip in each index  2 maximum number of groups from each
--        3 '1' for groups that are due by now only, else ''
-- Reply  { time, { groups in `ready` }, { groups in `due` } }. The time in `due` may be too early,
--        so the records of the groups have to be compared with it.

-- @include clock

local ready, due = KEYS[1], KEYS[2]
local skip, count, only_due = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local now = clock()

local later = {}
local waiting = redis.call('ZRANGE', due, skip, skip + count - 1, 'WITHSCORES')
for i = 1, #waiting, 2 do
  if only_due and tonumber(waiting[i + 1]) > now then break end
  later[#later + 1] = waiting[i]
end
return { now, redis.call('ZRANGE', ready, skip, skip + count - 1), later }
