-- unlink: removes keys of a namespace that is being removed.
--
-- KEYS   keys in one slot
-- ARGV   none
-- Reply  number of keys that were removed; Redis frees their memory in the background

-- @include call_chunked

return unlink_keys(KEYS)
