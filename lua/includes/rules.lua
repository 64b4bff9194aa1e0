-- @include record

-- What few groups use: a place of the record of a group (includes/group.lua), an array with these
-- places. A number is 0 if it is not in force.
local WEIGHT     = 1   -- weight of the waiting tasks; counted only while there are SEGMENTS
local MAX_BYTES  = 2   -- smallest max bytes among the waiting tasks
local MAX_WEIGHT = 3   -- smallest max weight among the waiting tasks
local DUE        = 4   -- earliest due_at among them: twice the ms, plus 1 if a schedule set it
local NOT_BEFORE = 5   -- latest not_before among the waiting tasks, ms
local POSTPONED  = 6   -- until when an operator has postponed the waiting tasks, ms
local INTERVAL   = 7   -- min interval of the newest section, ms
local COOL_UNTIL = 8   -- end of the min interval since the last cut, ms
local LEADING    = 9   -- 1 if the first task after a min interval is due at once
local COMMON     = 10  -- limits of entries that store none: a text, see includes/limits.lua
local SEGMENTS   = 11  -- summaries of the waiting tasks (includes/segments.lua); '' if they differ
                       -- in nothing but their bytes, and no batch has a maximum of bytes or weight
local PAUSED_BY  = 12  -- who has paused the group; ''
local PAUSED     = 13  -- since when the group is paused, ms: no batch is cut from it

-- Bytes of one summary in SEGMENTS.
local SEGMENT_BYTES = 72

local function assert_rules(rules)
  assert_whole(rules, WEIGHT, LEADING)
  assert_whole(rules, PAUSED, PAUSED)
  local texts = type(rules[COMMON]) == 'string' and type(rules[SEGMENTS]) == 'string'
    and type(rules[PAUSED_BY]) == 'string' and #rules[SEGMENTS] % SEGMENT_BYTES == 0
  if not texts or #rules ~= PAUSED then error('foreign bytes') end
end
