-- Redis' own clock in whole milliseconds. The clocks of clients take part in no decision.
local function clock()
  local seconds, microseconds = unpack(redis.call('TIME'))
  return seconds * 1000 + math.floor(microseconds / 1000)
end
