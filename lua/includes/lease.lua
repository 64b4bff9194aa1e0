-- The ms until a lease runs out, or 0. `expires` is its expiry, ms, and `lease` how long it is.
-- An expiry further ahead than that is void: the clock was set back, or failed over to one that is
-- behind. Else a dead leader would keep its partition until the clock has caught up. A living
-- leader keeps a void lease until another one acquires it, and its next `renew` makes it valid.
local function lease_left(expires, lease, now)
  local left = (tonumber(expires) or 0) - now
  if left > 0 and left <= (tonumber(lease) or left) then return left end
  return 0
end
