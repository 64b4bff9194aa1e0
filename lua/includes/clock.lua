-- Redis' own clock in whole milliseconds: no node's clock takes part in any decision.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
