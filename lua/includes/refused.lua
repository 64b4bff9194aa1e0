-- What to do about an error reply of redis.pcall. An error that is not about the key but about the
-- server (it is read-only, out of memory, can't persist or replicate) or the user holds for the whole
-- script, which has written nothing yet then: returns the error reply for all of it. Else nil: it is
-- about the key. Before Redis 7 the text of an error in a script has a prefix before its code, and
-- what a user may not do has none before Redis 7.2.
local REFUSALS = {
  ['READONLY '] = '', ['OOM '] = '', ['MISCONF '] = '', ['NOREPLICAS '] = '', ['NOPERM '] = '',
  ['The user executing the script'] = 'NOPERM ', ['ACL failure in script'] = 'NOPERM ',
}

local function refusal_of_all(err)
  for sign, code in pairs(REFUSALS) do
    local from = string.find(err, sign, 1, true)
    if from then return redis.error_reply(code .. string.sub(err, from)) end
  end
end
