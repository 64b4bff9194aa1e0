-- @include group

-- Makes all waiting tasks of a group due now; tasks that come later are not. Returns the number of
-- tasks that were newly marked. `where` has groups, due, ready, group, now.
local function flush_group(where)
  local group = where.group
  local g = read_group(where.groups, group)
  if not g then return 0 end
  local marked = g[WAITING] - g[MARKED]
  if marked > 0 then
    became_due(g, due_at(g), where.now)
    g[MARKED] = g[WAITING]
    write_group(where.groups, group, g)
    schedule(where.due, where.ready, group, g, where.now)
  end
  return marked
end
