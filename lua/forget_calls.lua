-- forget_calls: removes what `add` remembers of a producer's calls. Sent by a producer that ends.
--
-- KEYS   call keys of one partition
-- ARGV   none
-- Reply  number of keys removed. Without this call they expire.

-- @include call_chunked

local removed = 0
for from = 1, #KEYS, CHUNK do
  removed = removed + redis.call('DEL', unpack(KEYS, from, math.min(from + CHUNK - 1, #KEYS)))
end
return removed
