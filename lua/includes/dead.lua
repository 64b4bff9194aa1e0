-- A dead letter: the record in the hash `dead`, a msgpack array of
--   group key, number of tasks, attempts, first claimed at ms, died at ms, error text, traceback
-- Its tasks are in a list of their own.
local DEAD_GROUP, DEAD_COUNT = 1, 2

local function pack_dead(batch, count, now, error, traceback)
  return cmsgpack.pack({
    batch[GROUP], count, batch[ATTEMPTS], batch[CREATED], now, error, traceback,
  })
end
