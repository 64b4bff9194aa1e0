-- forget_calls: a producer that ends takes back what `add` remembers of its calls.
--
-- KEYS  call keys of one partition
-- Reply how many there were. Without it they expire.

return redis.call('DEL', unpack(KEYS))
