-- unlink: removes keys of a namespace that is being removed.
--
-- KEYS   keys in one slot
-- ARGV   none
-- Reply  number of keys that were removed; Redis frees their memory in the background

-- @include call_chunked

local removed = 0
for from = 1, #KEYS, CHUNK do
  removed = removed + redis.call('UNLINK', unpack(KEYS, from, math.min(from + CHUNK - 1, #KEYS)))
end
return removed
