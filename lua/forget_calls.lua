-- forget_calls: removes what `add` remembers of a producer's calls. Sent by a producer that ends.
--
-- KEYS   call keys of one partition
-- ARGV   none
-- Reply  number of keys removed. Without this call they expire.

return redis.call('DEL', unpack(KEYS))
