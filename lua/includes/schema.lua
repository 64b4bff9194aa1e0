-- The version of the key schema. A later release that stores something in another form writes its
-- version into the state, in the script that converts the partition. Scripts of an earlier release
-- write nothing from then on. A state without the field has schema 1.
local SCHEMA = 1

-- While a namespace is being moved the field is 'frozen ' and the id of the mover. In what a move
-- leaves behind it is 'moved'; in the record of the namespace, 'moved ' and the new name.
local FROZEN, LEFT_BEHIND = 'frozen ', 'moved'

-- Returns nil, or the error reply that the script has to return. `stored` is the field `schema` of
-- the state.
local function refuse_schema(stored)
  if stored and tonumber(stored) ~= SCHEMA then
    if string.sub(stored, 1, #FROZEN) == FROZEN then
      return redis.error_reply('FROZEN the namespace is being moved')
    end
    if string.sub(stored, 1, #LEFT_BEHIND) == LEFT_BEHIND then
      return redis.error_reply('UNREGISTERED the namespace was moved')
    end
    return redis.error_reply('SCHEMA the partition has key schema ' .. stored .. ', not ' .. SCHEMA)
  end
end
