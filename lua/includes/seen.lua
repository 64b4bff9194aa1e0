-- Ids that were flushed lately and are not accepted again. They are in two sets, the present one
-- and the one before, so that a set is removed as a whole and never searched for old ids. An id is
-- known for at least one dedupe window and at most two: until the time (ms) in the fields of the
-- state. The sets have no TTL, since Redis frees a set that expires in the foreground; `poll`
-- unlinks them, and readers ask the times.
local SEEN_UNTIL, SEEN_BEFORE_UNTIL = 'seen_until', 'seen_before_until'

local function seen_member(group, id) return struct.pack('>I2', #group) .. group .. id end

-- Whether the ids of a set count that has this time in the state.
local function is_known(until_ms, now) return (tonumber(until_ms) or 0) > now end
