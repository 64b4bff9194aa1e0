-- Tells everything that waits in a group to go now; what comes later waits its own time.
-- Returns how many tasks that are, but for those that have been told before.
local function flush_group(groups, due, ready, group, now)
  local g = read_group(groups, group)
  if not g then return 0 end
  local told = g[WAITING] - g[FLUSH]
  if told > 0 then
    g[FLUSH] = g[WAITING]
    write_group(groups, group, g)
    schedule(due, ready, group, g, now)
  end
  return told
end
