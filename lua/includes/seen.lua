-- Ids that were flushed lately and are not accepted again. They are in two sets, the present one
-- and the one before, so that a set expires as a whole and is never searched for old ids. An id is
-- known for at least one dedupe window and at most two.
local function seen_member(group, id) return struct.pack('>I2', #group) .. group .. id end
