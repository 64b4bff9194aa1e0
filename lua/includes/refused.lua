-- What to do about an error reply of redis.pcall. An error that is not about the key but about the
-- server (it is read-only, out of memory, can't persist or replicate) holds for the whole script, which
-- has written nothing yet then: returns the error reply for all of it. Else nil: it is about the key.
-- Before Redis 7 the text of an error in a script has a prefix before its code.
local function refusal_of_all(err)
  for _, code in ipairs({ 'READONLY', 'OOM', 'MISCONF', 'NOREPLICAS', 'NOPERM' }) do
    local from = string.find(err, code .. ' ', 1, true)
    if from then return redis.error_reply(string.sub(err, from)) end
  end
end
