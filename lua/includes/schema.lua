-- The version of the key schema. A later release that stores something in another form writes its
-- version into the state, in the script that converts the partition. Scripts of an earlier release
-- write nothing from then on. A state without the field has schema 1.
local SCHEMA = 1

-- Returns nil, or the error reply that the script has to return. `stored` is the field `schema` of
-- the state.
local function refuse_schema(stored)
  if stored and tonumber(stored) ~= SCHEMA then
    return redis.error_reply('SCHEMA the partition has key schema ' .. stored .. ', not ' .. SCHEMA)
  end
end
