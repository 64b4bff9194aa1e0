-- Ids that were flushed lately and are not accepted again. They are in two sets, the present one and
-- the one before, so that a whole set expires and none has to be searched: an id is known for one
-- dedupe window at least and two at most.
local function seen_member(group, id) return struct.pack('>I2', #group) .. group .. id end
