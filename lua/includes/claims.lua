-- @include call_chunked

-- The scores of the index `claims`: when the claim of a batch ends, ms, or one of these.
local DIED = 0   -- the leader that held it vanished; `poll` counts that
local FREED = 1  -- the leader gave it back, or never got it

-- Ends all claims that have not ended.
local function end_claims(claims, score)
  local scores = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', claims, '(' .. FREED, '+inf')) do
    scores[#scores + 1] = score
    scores[#scores + 1] = id
  end
  call_chunked('ZADD', claims, scores)
end
