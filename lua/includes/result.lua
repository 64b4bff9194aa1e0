-- @include batch

-- A merge result that is stored apart from the record of its batch, in the hash `result:BATCH`: it
-- is large, or its entries are enqueued in slices. Its parts are the fields LABEL:0, LABEL:1 and so
-- on. A result that replaces another one has a label of its own, so that the other one stays whole
-- until all parts are there.
local PARTIAL = '-'  -- the label while the parts of the first result are being stored

-- Whether a whole result is stored apart.
local function has_result(batch) return batch[RESULT] ~= '' and batch[RESULT] ~= PARTIAL end
