-- A later release that stores anything in another form says so in the state, in the script that
-- brings a partition into that form: scripts of an earlier one that is still running write nothing
-- from then on. No field means schema 1.
local SCHEMA = 1

-- Returns nil, or the error reply that the script has to return.
local function refuse_schema(stored)
  if stored and tonumber(stored) ~= SCHEMA then
    return redis.error_reply('SCHEMA the partition has key schema ' .. stored .. ', not ' .. SCHEMA)
  end
end
