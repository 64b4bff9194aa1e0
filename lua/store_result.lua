-- store_result: stores a part of the serialized merge result of a claimed batch, apart from its
-- record. With its last part the result replaces the stored one.
--
-- KEYS   1 state  2 batches  3 claims  4 result of the batch
-- ARGV   1 fencing token  2 batch id  3 label, which no other result of the batch has
--        4 place of the part, from 0  5 number of parts  6 the part
-- Reply  1, or 0 if the batch is not claimed or an earlier part is missing

-- @include arguments
-- @include assert_type
-- @include batch
-- @include clock
-- @include fence
-- @include result

local state, batches, claims, result = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token, id, label = ARGV[1], ARGV[2], ARGV[3]
local place, parts, part = whole_number(ARGV[4]), whole_number(ARGV[5]), ARGV[6]
assert_arguments(#KEYS == 4 and #ARGV == 6 and label ~= '' and label ~= PARTIAL and place < parts)
local now = clock()
local stale = fence(state, token, now)
if stale then return stale end

local function field(of_label, at) return of_label .. ':' .. string.format('%.0f', at) end

-- Removes the parts of other results: of an earlier one, and of those that were never whole.
local function remove_others()
  for _, name in ipairs(redis.call('HKEYS', result)) do
    if string.sub(name, 1, #label + 1) ~= label .. ':' then redis.call('HDEL', result, name) end
  end
end

local function write_batch(batch) redis.call('HSET', batches, id, cmsgpack.pack(batch)) end

local batch = read_batch(batches, id)
if not batch or batch[LETTER] ~= '' or not redis.call('ZSCORE', claims, id) then return 0 end
assert_type('HLEN', { result })
redis.call('HSET', result, field(label, place), part)
if batch[RESULT] == '' then  -- whoever removes the batch has to know of the key
  batch[RESULT] = PARTIAL
  write_batch(batch)
end
if place + 1 < parts then return 1 end

for at = 0, place - 1 do
  if redis.call('HEXISTS', result, field(label, at)) == 0 then return 0 end
end
remove_others()
if batch[MERGED] == '' and not has_result(batch) then
  batch[ATTEMPTS] = 0  -- those to merge it are over
end
batch[MERGED], batch[RESULT] = '', label
write_batch(batch)
return 1
